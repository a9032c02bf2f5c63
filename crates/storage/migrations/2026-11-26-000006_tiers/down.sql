DROP TABLE tier_changes, tier_counts, tiers;
DROP SEQUENCE tier_change_numbers;
