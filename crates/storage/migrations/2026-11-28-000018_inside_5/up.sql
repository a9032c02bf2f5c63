CREATE INDEX CONCURRENTLY IF NOT EXISTS nym_suffixes_inside_5 ON nym_suffixes (shard, community, substr(suffix, 6)) WHERE inside >= 5;
