DROP TABLE activity_adds, members;
DROP SEQUENCE member_numbers;
