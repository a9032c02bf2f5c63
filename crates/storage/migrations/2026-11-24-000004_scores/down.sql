DROP TABLE activity_adds;
DROP TABLE scores;
