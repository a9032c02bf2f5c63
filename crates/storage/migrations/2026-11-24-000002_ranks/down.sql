DROP FUNCTION members_at;
DROP FUNCTION members_above;
DROP TABLE rank_counts;
