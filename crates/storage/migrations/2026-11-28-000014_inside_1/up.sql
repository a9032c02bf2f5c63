CREATE INDEX CONCURRENTLY IF NOT EXISTS nym_suffixes_inside_1 ON nym_suffixes (shard, community, substr(suffix, 2)) WHERE inside >= 1;
