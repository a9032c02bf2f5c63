-- The place that a tier had in the policy before this one: by it is told whether who held a tier that is gone is promoted or demoted.
ALTER TABLE tiers ADD COLUMN former_place smallint;
