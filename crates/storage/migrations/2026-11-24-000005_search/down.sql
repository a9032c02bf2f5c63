DROP TRIGGER profiles_nym_updated ON profiles;
DROP TRIGGER profiles_nym_inserted ON profiles;
DROP FUNCTION profiles_nym_updated;
DROP FUNCTION profiles_nym_inserted;
DROP FUNCTION nym_tails_of;
DROP TABLE nym_tails;
