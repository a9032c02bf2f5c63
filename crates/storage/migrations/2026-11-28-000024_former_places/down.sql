ALTER TABLE tiers DROP COLUMN former_place;
