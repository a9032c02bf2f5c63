CREATE INDEX CONCURRENTLY IF NOT EXISTS badge_ops_by_awarder ON badge_ops (shard, community, by, at) WHERE by IS NOT NULL;
