-- Every community, by the ids that the outside knows it by. A small table that is read whole into caches; on several nodes it is
-- copied to each.
--
-- Inside, a community is `shard` and `community`: they lead every key of every table below, and every statement on those binds one
-- shard as a value. So all rows of a shard can lie on one node, and a transaction of one shard stays there.
CREATE SEQUENCE community_numbers AS integer;
CREATE TABLE communities (
    community_id uuid PRIMARY KEY,
    guild_id text COLLATE "C" NOT NULL UNIQUE,
    shard smallint NOT NULL CHECK (shard BETWEEN 0 AND 15),
    community integer NOT NULL UNIQUE CHECK (community > 0)
);

-- What a community is now, and the lock on what its members share. A value that events set carries its watermark: the time and the
-- id of the event that set it. Events have one order, by time and then by id; a value is replaced only by a later event's, so
-- arrival order does not matter.
CREATE TABLE community_states (
    shard smallint NOT NULL,
    community integer NOT NULL,
    -- The id that the outside knows it by, repeated: a writer whose keys are those of another database, such as a primary that has
    -- been lost with its last transactions, finds out when it has the lock.
    community_id uuid NOT NULL,
    -- Goes up with every move of a rank tier's threshold: who read a member's tier before it reads it again.
    thresholds_moved bigint NOT NULL DEFAULT 0 CHECK (thresholds_moved >= 0),
    name_set_at timestamptz,
    active_set_at timestamptz,
    name_set_by uuid,
    active_set_by uuid,
    tenure_member_from integer NOT NULL DEFAULT 31,
    tenure_veteran_from integer NOT NULL DEFAULT 90,
    tenure_elder_from integer NOT NULL DEFAULT 180,
    active boolean NOT NULL DEFAULT true,
    name text,
    PRIMARY KEY (shard, community),
    CHECK (tenure_member_from BETWEEN 1 AND tenure_veteran_from - 1 AND tenure_veteran_from < tenure_elder_from),
    CHECK ((name_set_at IS NULL) = (name_set_by IS NULL)),
    CHECK ((active_set_at IS NULL) = (active_set_by IS NULL))
) WITH (fillfactor = 50);

-- What there is to lock of a community's members: four stripes by the person's id. A writer takes the stripes of its members,
-- writes what is theirs alone, then takes the community's state, writes what all share, and commits: most of the work of several
-- writers of one community goes on at once. Both locks are taken in the order of keys, so no deadlock is possible.
CREATE TABLE community_stripes (
    shard smallint NOT NULL,
    community integer NOT NULL,
    stripe smallint NOT NULL CHECK (stripe BETWEEN 0 AND 3),
    PRIMARY KEY (shard, community, stripe),
    FOREIGN KEY (shard, community) REFERENCES community_states
) WITH (fillfactor = 50);

-- Kept counts: visible members only, written in the transaction that changes what they count. A transaction sums its changes and
-- writes each count once, with the community's lock.
CREATE TABLE community_totals (
    shard smallint NOT NULL,
    community integer NOT NULL,
    members bigint NOT NULL DEFAULT 0,
    badges bigint NOT NULL DEFAULT 0,
    conviction numeric NOT NULL DEFAULT 0,
    PRIMARY KEY (shard, community)
) WITH (fillfactor = 50);

-- What happened on each UTC day. A member counts as active on the day of their last activity and as new on that of joining; an
-- unrevoked badge counts on the day it was awarded.
CREATE TABLE community_days (
    shard smallint NOT NULL,
    community integer NOT NULL,
    day date NOT NULL,
    active bigint NOT NULL DEFAULT 0,
    joined bigint NOT NULL DEFAULT 0,
    awarded bigint NOT NULL DEFAULT 0,
    promoted bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (shard, community, day)
) WITH (fillfactor = 50);

-- Secrets that every replica of the worker shares. Two random UUIDs hold 244 random bits.
CREATE TABLE signing_keys (
    purpose text COLLATE "C" PRIMARY KEY,
    secret bytea NOT NULL CHECK (length(secret) = 32)
);
INSERT INTO signing_keys VALUES ('cursor', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
