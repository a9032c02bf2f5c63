-- Changes that are to be published to siblings: an outbox. Each is written in the transaction that makes it, and removed when it is
-- published.
--
-- A community's changes are numbered under its lock, so the numbers have no gap and are in the order of commits.
ALTER TABLE community_states
    -- The number of the last change.
    ADD COLUMN changes bigint NOT NULL DEFAULT 0,
    -- That of the last change that says of others that they were dropped because too many waited.
    ADD COLUMN changes_lost bigint NOT NULL DEFAULT 0,
    -- Which types are published: one bit each, the lowest that of type 1.
    ADD COLUMN change_types smallint NOT NULL DEFAULT 127,
    ADD CONSTRAINT community_states_changes_check
        CHECK (changes_lost BETWEEN 0 AND changes AND change_types BETWEEN 0 AND 127) NOT VALID;

-- Types: 1 member.disappeared, 2 member.appeared, 3 member.renamed, 4 tier.promoted, 5 tier.demoted, 6 badge.revoked, 7 badge.awarded,
-- 8 changes.lost. `value_from` and `value_to` are a tier or a nym before and now; of a badge `value_to` is its kind, of a
-- disappearance its reason.
CREATE TABLE changes (
    shard smallint NOT NULL,
    change_type smallint NOT NULL CHECK (change_type BETWEEN 1 AND 8),
    community integer NOT NULL,
    number bigint NOT NULL CHECK (number > 0),
    -- How many were dropped.
    lost bigint CHECK (lost > 0),
    at timestamptz NOT NULL,
    change_id uuid NOT NULL,
    profile_id uuid,
    badge_id uuid,
    user_id text COLLATE "C",
    value_from text,
    value_to text,
    reason text,
    traceparent text,
    PRIMARY KEY (shard, community, number),
    CHECK ((change_type = 8) = (lost IS NOT NULL)),
    CHECK ((change_type = 8) = (profile_id IS NULL) AND (change_type = 8) = (user_id IS NULL)),
    CHECK ((change_type IN (6, 7)) = (badge_id IS NOT NULL))
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);
-- What is personal in them, for when a person is erased.
CREATE INDEX changes_personal ON changes (shard, community, user_id) WHERE change_type = 3 OR reason IS NOT NULL;

-- Up to which number a community's changes are published. Who publishes them holds its row, so only one does so at a time.
CREATE TABLE changes_published (
    shard smallint NOT NULL,
    community integer NOT NULL,
    number bigint NOT NULL DEFAULT 0 CHECK (number >= 0),
    PRIMARY KEY (shard, community)
) WITH (fillfactor = 50);
ALTER TABLE changes ALTER COLUMN shard SET (n_distinct = 1), ALTER COLUMN community SET (n_distinct = 1);
ALTER TABLE changes_published ALTER COLUMN shard SET (n_distinct = 1);
