DROP FUNCTION nym_tails_of;
DROP TABLE nym_tails;
