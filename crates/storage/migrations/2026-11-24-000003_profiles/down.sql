DROP TABLE tier_counts;
DROP TABLE profiles;
DROP FUNCTION profiles_updated;
DROP FUNCTION profiles_inserted;
DROP FUNCTION profile_counts_add;
