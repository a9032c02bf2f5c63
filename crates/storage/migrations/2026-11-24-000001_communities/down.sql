DROP TABLE signing_keys;
DROP TABLE community_days;
DROP TABLE community_counts;
DROP TABLE community_stripes;
DROP TABLE communities;
DROP FUNCTION utc_day;
