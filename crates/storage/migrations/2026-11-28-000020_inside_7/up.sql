CREATE INDEX CONCURRENTLY IF NOT EXISTS nym_suffixes_inside_7 ON nym_suffixes (shard, community, substr(suffix, 8)) WHERE inside >= 7;
