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
    -- Folding can make eighteen characters of one: this bound keeps cursors and index keys within theirs.
    nym_key text COLLATE "C" NOT NULL
        GENERATED ALWAYS AS (left(coalesce(nick_key, username_key, lower(left(user_id, 32)), ''), 64)) STORED,
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

-- Adds visible profiles (sign 1) or takes them away (sign -1) in everything that counts profiles.
CREATE FUNCTION profile_counts_add(
    communities uuid[], tiers text[], joined date[], badge_counts integer[], signs integer[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF communities IS NULL THEN
        RETURN;
    END IF;

    INSERT INTO tier_counts AS c (community_id, tier, members)
    SELECT change.community_id, coalesce(change.tier, ''), sum(change.sign)
    FROM unnest(communities, tiers, signs) AS change (community_id, tier, sign)
    GROUP BY 1, 2 HAVING sum(change.sign) <> 0 ORDER BY 1, 2
    ON CONFLICT (community_id, tier) DO UPDATE SET members = c.members + excluded.members;

    INSERT INTO community_counts AS c (community_id, members, badges)
    SELECT change.community_id, sum(change.sign), sum(change.sign * change.badges)
    FROM unnest(communities, badge_counts, signs) AS change (community_id, badges, sign)
    GROUP BY 1 HAVING sum(change.sign) <> 0 OR sum(change.sign * change.badges) <> 0 ORDER BY 1
    ON CONFLICT (community_id)
    DO UPDATE SET members = c.members + excluded.members, badges = c.badges + excluded.badges;

    INSERT INTO community_days AS c (community_id, day, joined)
    SELECT change.community_id, change.day, sum(change.sign)
    FROM unnest(communities, joined, signs) AS change (community_id, day, sign)
    GROUP BY 1, 2 HAVING sum(change.sign) <> 0 ORDER BY 1, 2
    ON CONFLICT (community_id, day) DO UPDATE SET joined = c.joined + excluded.joined;

    PERFORM rank_counts_add(2, communities, badge_counts::bigint[], signs);
END $$;

CREATE FUNCTION profiles_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM profile_counts_add(
        array_agg(n.community_id), array_agg(n.tier), array_agg(utc_day(n.joined_at)), array_agg(n.badge_count),
        array_agg(1)
    )
    FROM new_rows AS n WHERE n.visible;
    RETURN NULL;
END $$;

CREATE FUNCTION profiles_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM profile_counts_add(
        array_agg(change.community_id), array_agg(change.tier), array_agg(utc_day(change.joined_at)),
        array_agg(change.badge_count), array_agg(change.sign)
    )
    FROM (
        SELECT n.community_id, n.tier, n.joined_at, n.badge_count, 1 AS sign FROM new_rows AS n WHERE n.visible
        UNION ALL
        SELECT o.community_id, o.tier, o.joined_at, o.badge_count, -1 FROM old_rows AS o WHERE o.visible
    ) AS change;
    RETURN NULL;
END $$;

CREATE TRIGGER profiles_inserted AFTER INSERT ON profiles
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION profiles_inserted();
CREATE TRIGGER profiles_updated AFTER UPDATE ON profiles
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION profiles_updated();
