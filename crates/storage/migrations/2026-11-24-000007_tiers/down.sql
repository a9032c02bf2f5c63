DROP FUNCTION tiers_settle;
DROP TRIGGER profiles_visibility_to_tier_changes ON profiles;
DROP FUNCTION profiles_visibility_to_tier_changes;
DROP TABLE tier_changes;
DROP FUNCTION tier_changes_inserted;
DROP TABLE tier_policies;
