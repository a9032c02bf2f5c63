DROP TABLE tier_counts;
DROP TABLE profiles;
