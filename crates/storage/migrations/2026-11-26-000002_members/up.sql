-- One member of one community: all that any list shows of them, in one row. No index holds what events change, so that a change is
-- written in place (HOT). What orders or finds members stands in narrow tables beside it, each written only when that order
-- changes. A row is never deleted: an erased person leaves an empty one.
--
-- The display name is the nickname, else the user name, else the person's id. `nym_key` is its folded form, computed where Unicode is
-- at hand and at most 64 characters, so that cursors and index keys stay within their bounds.
CREATE SEQUENCE member_numbers AS bigint;
CREATE TABLE members (
    shard smallint NOT NULL,
    tier smallint,
    community integer NOT NULL,
    member bigint NOT NULL CHECK (member > 0),
    conviction bigint NOT NULL DEFAULT 0 CHECK (conviction BETWEEN -9007199254740991 AND 9007199254740991),
    activity bigint NOT NULL DEFAULT 0 CHECK (activity BETWEEN 0 AND 9007199254740991),
    -- The earliest join, or until one is known the earliest event.
    joined_at timestamptz NOT NULL CHECK (isfinite(joined_at)),
    last_active_at timestamptz,
    conviction_set_at timestamptz,
    -- The last event that set the activity; what was added after it is in activity_adds.
    activity_set_at timestamptz,
    username_set_at timestamptz,
    nick_set_at timestamptz,
    presence_set_at timestamptz,
    erased_at timestamptz,
    badge_count integer NOT NULL DEFAULT 0 CHECK (badge_count >= 0),
    join_known boolean NOT NULL,
    has_left boolean NOT NULL DEFAULT false,
    hidden boolean NOT NULL DEFAULT false,
    -- False until the first tier was assigned, which is not a promotion.
    tier_assigned boolean NOT NULL DEFAULT false,
    visible boolean NOT NULL GENERATED ALWAYS AS (NOT has_left AND NOT hidden AND erased_at IS NULL) STORED,
    profile_id uuid NOT NULL,
    conviction_set_by uuid,
    activity_set_by uuid,
    username_set_by uuid,
    nick_set_by uuid,
    presence_set_by uuid,
    user_id text COLLATE "C",
    wallet text COLLATE "C",
    username text,
    nick text,
    nym_key text COLLATE "C" NOT NULL CHECK (length(nym_key) <= 64),
    PRIMARY KEY (shard, community, member),
    CHECK ((user_id IS NULL) = (erased_at IS NOT NULL)),
    CHECK ((conviction_set_at IS NULL) = (conviction_set_by IS NULL)),
    CHECK ((activity_set_at IS NULL) = (activity_set_by IS NULL)),
    CHECK ((username_set_at IS NULL) = (username_set_by IS NULL)),
    CHECK ((nick_set_at IS NULL) = (nick_set_by IS NULL)),
    CHECK ((presence_set_at IS NULL) = (presence_set_by IS NULL))
) WITH (fillfactor = 80);
-- A page of a list looks up the member of each of its keys. A number is one member's in all communities, and a hash finds it in half
-- of the pages that the key's tree takes.
CREATE INDEX members_by_number ON members USING hash (member);
CREATE UNIQUE INDEX members_by_profile ON members (shard, community, profile_id);
CREATE UNIQUE INDEX members_by_user ON members (shard, community, user_id) WHERE user_id IS NOT NULL;
CREATE UNIQUE INDEX members_by_wallet ON members (shard, community, wallet) WHERE wallet IS NOT NULL;

-- Activity added since it was last set. Kept because the event that sets it may arrive after later additions.
CREATE TABLE activity_adds (
    shard smallint NOT NULL,
    community integer NOT NULL,
    member bigint NOT NULL,
    at timestamptz NOT NULL CHECK (isfinite(at)),
    event_id uuid NOT NULL,
    amount bigint NOT NULL CHECK (amount BETWEEN 0 AND 9007199254740991),
    PRIMARY KEY (shard, community, member, at, event_id)
);
