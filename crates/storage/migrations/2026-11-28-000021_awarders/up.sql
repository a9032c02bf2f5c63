-- What a person awarded and revoked, for when the person is erased. An entry of equal keys is stored once, so without the time most of them take a
-- few bytes.
CREATE INDEX CONCURRENTLY IF NOT EXISTS badge_ops_of_awarder ON badge_ops (shard, community, by) WHERE by IS NOT NULL;
