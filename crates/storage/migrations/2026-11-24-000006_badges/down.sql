DROP FUNCTION badges_settle;
DROP TABLE badge_kinds;
DROP TABLE badge_ops;
DROP TABLE badges;
DROP FUNCTION badges_updated;
DROP FUNCTION badges_deleted;
DROP FUNCTION badges_inserted;
DROP FUNCTION badge_counts_add;
