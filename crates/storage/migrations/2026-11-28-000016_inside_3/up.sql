CREATE INDEX CONCURRENTLY IF NOT EXISTS nym_suffixes_inside_3 ON nym_suffixes (shard, community, substr(suffix, 4)) WHERE inside >= 3;
