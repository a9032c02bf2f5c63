DROP FUNCTION tiers_settle;
DROP TRIGGER profiles_visibility_to_tier_changes ON profiles;
DROP FUNCTION profiles_visibility_to_tier_changes;
DROP TABLE tier_changes;
DROP FUNCTION tier_changes_updated;
DROP FUNCTION tier_changes_deleted;
DROP FUNCTION tier_changes_inserted;
DROP FUNCTION promotions_add;
DROP TABLE tier_policies;
