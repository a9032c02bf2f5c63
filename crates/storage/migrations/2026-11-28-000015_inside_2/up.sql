CREATE INDEX CONCURRENTLY IF NOT EXISTS nym_suffixes_inside_2 ON nym_suffixes (shard, community, substr(suffix, 3)) WHERE inside >= 2;
