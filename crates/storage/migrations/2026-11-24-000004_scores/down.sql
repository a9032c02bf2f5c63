DROP TRIGGER profiles_visibility_to_scores ON profiles;
DROP FUNCTION profiles_visibility_to_scores;
DROP TABLE activity_adds;
DROP TABLE scores;
DROP FUNCTION scores_updated;
DROP FUNCTION scores_inserted;
DROP FUNCTION score_counts_add;
