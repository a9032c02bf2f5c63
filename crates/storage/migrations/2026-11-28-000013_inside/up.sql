-- A row now stands for its suffix, and for those from the nym's next `inside` letters on, which all are of class 2: so a nym takes a row
-- a word, or two, where it took one a letter. The migrations that follow index these suffixes, each place within a row by itself.
--
-- Rows of 0.1.0 stand for one suffix each. They stay until the nym changes.
ALTER TABLE nym_suffixes ADD COLUMN inside smallint NOT NULL DEFAULT 0;
ALTER TABLE nym_suffixes ADD CONSTRAINT nym_suffixes_inside_check CHECK (inside BETWEEN 0 AND 7) NOT VALID;
