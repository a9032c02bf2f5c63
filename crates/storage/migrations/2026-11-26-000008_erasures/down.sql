DELETE FROM signing_keys WHERE purpose = 'erasures';
DROP TABLE erasures;
