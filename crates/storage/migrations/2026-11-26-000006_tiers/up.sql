-- The tiers of a community. One of its policy is reached by a score or by a rank, and `place` counts from the highest; one of an
-- earlier policy has no place, and stays because members' history names it. A name keeps its number.
CREATE TABLE tiers (
    shard smallint NOT NULL,
    community integer NOT NULL,
    tier smallint NOT NULL CHECK (tier > 0),
    place smallint CHECK (place >= 0),
    last_rank integer CHECK (last_rank > 0),
    from_conviction bigint,
    -- Of a rank tier, the lowest conviction that holds it now; none while there are fewer members than ranks, and all hold it.
    threshold bigint,
    name text COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, community, tier),
    UNIQUE (shard, community, name),
    CHECK ((place IS NULL) = (from_conviction IS NULL AND last_rank IS NULL)),
    CHECK (from_conviction IS NULL OR last_rank IS NULL),
    CHECK (threshold IS NULL OR last_rank IS NOT NULL)
);

-- Visible members of each tier. All others have none.
CREATE TABLE tier_counts (
    shard smallint NOT NULL,
    community integer NOT NULL,
    tier smallint NOT NULL,
    members bigint NOT NULL,
    PRIMARY KEY (shard, community, tier)
) WITH (fillfactor = 50);

-- Every change from one tier to another.
CREATE SEQUENCE tier_change_numbers AS bigint;
CREATE TABLE tier_changes (
    shard smallint NOT NULL,
    from_tier smallint,
    to_tier smallint,
    promotion boolean NOT NULL,
    -- The member's, repeated so that the list's index holds visible members' changes only.
    visible boolean NOT NULL,
    community integer NOT NULL,
    change bigint NOT NULL,
    member bigint NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (shard, community, member, change)
);
CREATE INDEX tier_changes_by_date ON tier_changes (shard, community, at, change) WHERE visible;
