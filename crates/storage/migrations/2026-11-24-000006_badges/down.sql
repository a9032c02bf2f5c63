DROP FUNCTION badges_settle;
DROP TABLE badge_kinds;
DROP TABLE badge_ops;
DROP TABLE badges;
