DROP TABLE nym_suffixes, directory;
