-- A community is the tenant: its id comes first in every key of every table.
--
-- A value that events set carries the watermark (time, event id) of the event that set it. Events have one order, by
-- time and then by id; a value is replaced only by a later event's, so arrival order does not matter.
CREATE TABLE communities (
    community_id uuid PRIMARY KEY,
    guild_id text COLLATE "C" NOT NULL UNIQUE,
    name text,
    name_at timestamptz,
    name_event uuid,
    active boolean NOT NULL DEFAULT true,
    active_at timestamptz,
    active_event uuid,
    tenure_member_from integer NOT NULL DEFAULT 31,
    tenure_veteran_from integer NOT NULL DEFAULT 90,
    tenure_elder_from integer NOT NULL DEFAULT 180,
    CHECK (tenure_member_from < tenure_veteran_from AND tenure_veteran_from < tenure_elder_from),
    -- Goes up with every move of a rank tier's cut: who read a member's tier before it reads it again.
    cuts_moved bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What there is to lock of a community's members, four stripes by the person's id. A writer takes the stripes of its members,
-- writes what is theirs alone, then takes the community's row, writes what all share, and commits: most of the work of several
-- writers of one community goes on at once. Their order, here and there that of the keys, admits no deadlock.
CREATE TABLE community_stripes (
    community_id uuid NOT NULL REFERENCES communities,
    stripe smallint NOT NULL CHECK (stripe BETWEEN 0 AND 3),
    PRIMARY KEY (community_id, stripe)
) WITH (fillfactor = 50);

-- What is counted is kept in the transaction that changes it, visible members only: a transaction sums its changes and
-- writes each count once, with the community's lock. They are apart from communities because that row is the lock.
CREATE TABLE community_counts (
    community_id uuid PRIMARY KEY REFERENCES communities,
    members bigint NOT NULL DEFAULT 0,
    conviction_total numeric NOT NULL DEFAULT 0,
    badges bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- What happened on each UTC day. A member counts as active on the day of their last activity and as new on that of
-- joining; an unrevoked badge counts on the day it was awarded.
CREATE TABLE community_days (
    community_id uuid NOT NULL REFERENCES communities,
    day date NOT NULL,
    active bigint NOT NULL DEFAULT 0,
    joined bigint NOT NULL DEFAULT 0,
    awarded bigint NOT NULL DEFAULT 0,
    promoted bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (community_id, day)
) WITH (fillfactor = 50);

CREATE FUNCTION utc_day(at timestamptz) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (at AT TIME ZONE 'UTC')::date;

-- Secrets that every replica of the worker shares. Two random UUIDs hold 244 random bits.
CREATE TABLE signing_keys (
    purpose text COLLATE "C" PRIMARY KEY,
    secret bytea NOT NULL CHECK (length(secret) = 32)
);
INSERT INTO signing_keys VALUES ('cursor', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
