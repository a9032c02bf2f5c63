DROP TABLE signing_keys, community_days, community_totals, community_stripes, community_states, communities;
DROP SEQUENCE community_numbers;
