-- The kinds of badges of a community, and how many visible members hold each. A kind that was ever awarded stays; one that was only
-- ever revoked, by an event that came before its award, has no date of a first award and is in no list.
CREATE TABLE badge_kinds (
    shard smallint NOT NULL,
    community integer NOT NULL,
    kind integer NOT NULL CHECK (kind > 0),
    holders bigint NOT NULL DEFAULT 0,
    first_awarded_at timestamptz,
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, community, kind),
    UNIQUE (shard, community, name)
) WITH (fillfactor = 70);

-- Every award and revocation that arrived, with or without effect: an event that arrives late may give an earlier one its effect, or
-- take it. An award that has effect is a badge, `op_id` its id; the next revocation revokes it, and is repeated in its row.
-- In the order of time and id, an award has effect unless the operation before it is an award, too.
CREATE TABLE badge_ops (
    shard smallint NOT NULL,
    community integer NOT NULL,
    kind integer NOT NULL,
    award boolean NOT NULL,
    is_badge boolean NOT NULL,
    member bigint NOT NULL,
    at timestamptz NOT NULL CHECK (isfinite(at)),
    revoked_at timestamptz,
    op_id uuid NOT NULL,
    by text COLLATE "C",
    reason text,
    revoked_by text,
    revoke_reason text,
    PRIMARY KEY (shard, community, member, kind, at, op_id),
    CHECK (award OR NOT is_badge),
    CHECK (is_badge OR revoked_at IS NULL),
    CHECK (revoked_at IS NOT NULL OR (revoked_by IS NULL AND revoke_reason IS NULL))
);
CREATE INDEX badges_held ON badge_ops (shard, community, member, at, op_id) WHERE is_badge AND revoked_at IS NULL;
-- Finds whom a person awarded, for when that person is erased.
CREATE INDEX badge_ops_by_awarder ON badge_ops (shard, community, by, at) WHERE by IS NOT NULL;
