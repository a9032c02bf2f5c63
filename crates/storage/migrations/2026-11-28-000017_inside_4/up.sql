CREATE INDEX CONCURRENTLY IF NOT EXISTS nym_suffixes_inside_4 ON nym_suffixes (shard, community, substr(suffix, 5)) WHERE inside >= 4;
