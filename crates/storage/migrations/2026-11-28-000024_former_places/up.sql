-- The place that a tier had in the policy before this one, where it is in this one no more: by it is told whether who held it is promoted or demoted.
ALTER TABLE tiers ADD COLUMN former_place smallint;
