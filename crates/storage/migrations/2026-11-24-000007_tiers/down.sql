DROP FUNCTION tier_cuts_settle;
DROP TABLE tier_changes;
DROP TABLE tier_policies;
