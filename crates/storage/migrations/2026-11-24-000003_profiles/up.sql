-- One member of one community. Names come with their folded key, computed where Unicode is at hand; the display name
-- follows the nickname, else the user name, else the person's id.
CREATE TABLE profiles (
    community_id uuid NOT NULL REFERENCES communities,
    profile_id uuid NOT NULL,
    user_id text COLLATE "C",
    wallet text COLLATE "C",
    username text,
    username_key text COLLATE "C",
    username_at timestamptz,
    username_event uuid,
    nick text,
    nick_key text COLLATE "C",
    roles text[] NOT NULL DEFAULT '{}',
    nick_at timestamptz,
    nick_event uuid,
    nym text NOT NULL GENERATED ALWAYS AS (coalesce(nick, username, left(user_id, 32), '')) STORED,
    -- Keys come cut to 64 characters, so that cursors and index keys stay within their bounds. An id is ASCII.
    nym_key text COLLATE "C" NOT NULL
        GENERATED ALWAYS AS (coalesce(nick_key, username_key, lower(left(user_id, 32)), '')) STORED,
    has_left boolean NOT NULL DEFAULT false,
    presence_at timestamptz,
    presence_event uuid,
    hidden boolean NOT NULL DEFAULT false,
    erased_at timestamptz,
    visible boolean NOT NULL GENERATED ALWAYS AS (NOT has_left AND NOT hidden AND erased_at IS NULL) STORED,
    -- The earliest join, or until one is known the earliest event.
    joined_at timestamptz NOT NULL,
    join_known boolean NOT NULL,
    tier text COLLATE "C",
    -- False until the first tier was given, which is not a promotion.
    tier_given boolean NOT NULL DEFAULT false,
    badge_count integer NOT NULL DEFAULT 0 CHECK (badge_count >= 0),
    CHECK ((user_id IS NULL) = (erased_at IS NOT NULL)),
    CHECK (length(nym_key) <= 64),
    PRIMARY KEY (community_id, profile_id)
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX profiles_by_user ON profiles (community_id, user_id) WHERE user_id IS NOT NULL;
CREATE UNIQUE INDEX profiles_by_wallet ON profiles (community_id, wallet) WHERE wallet IS NOT NULL;

-- The directory, with and without a tier, in its three orders. The badge leaderboard is the order by badges; who is
-- looked up by nym is the first of the order by nym.
CREATE INDEX profiles_by_nym ON profiles (community_id, nym_key, joined_at, profile_id) WHERE visible;
CREATE INDEX profiles_by_tier_nym ON profiles (community_id, tier, nym_key, joined_at, profile_id) WHERE visible;
CREATE INDEX profiles_by_joined ON profiles (community_id, joined_at, profile_id) WHERE visible;
CREATE INDEX profiles_by_tier_joined ON profiles (community_id, tier, joined_at, profile_id) WHERE visible;
CREATE INDEX profiles_by_badges ON profiles (community_id, (-badge_count), joined_at, profile_id) WHERE visible;
CREATE INDEX profiles_by_tier_badges ON profiles (community_id, tier, (-badge_count), joined_at, profile_id)
    WHERE visible;

-- Visible members of each tier; '' counts those of none.
CREATE TABLE tier_counts (
    community_id uuid NOT NULL REFERENCES communities,
    tier text COLLATE "C" NOT NULL,
    members bigint NOT NULL,
    PRIMARY KEY (community_id, tier)
) WITH (fillfactor = 50);
