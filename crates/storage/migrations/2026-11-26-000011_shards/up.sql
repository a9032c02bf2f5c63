-- The shards, one row each. A statement that makes rows from values takes their shard from here, `WHERE here.shard = $1`: so they are
-- rows that come from a shard and go to it, and where the tables are distributed over several nodes the statement is sent whole to
-- the one that has the shard. Of values alone that is not known before they are counted out on the coordinator.
CREATE TABLE shards (
    shard smallint PRIMARY KEY CHECK (shard BETWEEN 0 AND 15)
);
INSERT INTO shards SELECT generate_series(0, 15);
ANALYZE shards;
