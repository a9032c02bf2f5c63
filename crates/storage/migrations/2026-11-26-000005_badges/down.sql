DROP TABLE badge_ops, badge_kinds;
