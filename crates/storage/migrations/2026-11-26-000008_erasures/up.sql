-- Who was erased, and when: no event dated at or before that makes or changes a profile of the person, however late it comes.
-- A person is HMAC-SHA-256 over the chat server's id and the person's, under the key below: an id is not to be read from it, and
-- without the key not to be tried on it. It is over the chat server's id because a community that is made anew from the stream,
-- behind a backup, has another id of its own. A row is never deleted, and its time only moves forward.
CREATE TABLE erasures (
    shard smallint NOT NULL,
    community integer NOT NULL,
    person bytea NOT NULL CHECK (length(person) = 32),
    erased_at timestamptz NOT NULL CHECK (isfinite(erased_at)),
    -- Every batch of events looks here, and needs no more than the index.
    PRIMARY KEY (shard, community, person) INCLUDE (erased_at)
);

INSERT INTO signing_keys VALUES ('erasures', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
