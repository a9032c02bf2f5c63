CREATE INDEX CONCURRENTLY IF NOT EXISTS nym_suffixes_inside_6 ON nym_suffixes (shard, community, substr(suffix, 7)) WHERE inside >= 6;
