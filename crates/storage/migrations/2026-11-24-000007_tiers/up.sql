-- A community's tier policy: a tier is reached by a score or by a rank. `place` counts from the highest.
CREATE TABLE tier_policies (
    community_id uuid NOT NULL REFERENCES communities,
    tier text COLLATE "C" NOT NULL,
    place smallint NOT NULL,
    from_conviction bigint,
    last_rank integer,
    -- Of a rank tier, the lowest conviction that holds it now.
    cut bigint,
    CHECK ((from_conviction IS NULL) <> (last_rank IS NULL)),
    CHECK ((last_rank IS NULL) = (cut IS NULL)),
    PRIMARY KEY (community_id, tier)
);

CREATE TABLE tier_changes (
    community_id uuid NOT NULL,
    change_id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    profile_id uuid NOT NULL,
    from_tier text COLLATE "C",
    to_tier text COLLATE "C",
    promotion boolean NOT NULL,
    at timestamptz NOT NULL,
    -- The profile's, kept by a trigger so that the list's index holds visible members' changes only.
    visible boolean NOT NULL DEFAULT true,
    PRIMARY KEY (community_id, change_id),
    FOREIGN KEY (community_id, profile_id) REFERENCES profiles
);
CREATE INDEX tier_changes_by_date ON tier_changes (community_id, at, change_id) WHERE visible;
CREATE INDEX tier_changes_by_profile ON tier_changes (community_id, profile_id, change_id);

CREATE FUNCTION profiles_visibility_to_tier_changes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tier_changes AS c SET visible = change.visible
    FROM (
        SELECT v.community_id, v.profile_id, bool_or(v.visible) FILTER (WHERE v.new) AS visible
        FROM (
            SELECT n.community_id, n.profile_id, n.visible, true AS new FROM new_rows AS n
            UNION ALL
            SELECT o.community_id, o.profile_id, o.visible, false FROM old_rows AS o
        ) AS v
        GROUP BY 1, 2 HAVING bool_or(v.visible) <> bool_and(v.visible)
    ) AS change
    CROSS JOIN LATERAL (SELECT r.ctid FROM tier_changes AS r
        WHERE r.community_id = change.community_id AND r.profile_id = change.profile_id OFFSET 0) AS row
    WHERE c.ctid = row.ctid;
    RETURN NULL;
END $$;

CREATE TRIGGER profiles_visibility_to_tier_changes AFTER UPDATE ON profiles
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION profiles_visibility_to_tier_changes();

-- Adds promotions (sign 1) or takes them away (sign -1) in the days they happened on.
CREATE FUNCTION promotions_add(communities uuid[], dates timestamptz[], signs integer[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO community_days AS c (community_id, day, promoted)
    SELECT change.community_id, utc_day(change.at), sum(change.sign)
    FROM unnest(communities, dates, signs) AS change (community_id, at, sign)
    GROUP BY 1, 2 HAVING sum(change.sign) <> 0 ORDER BY 1, 2
    ON CONFLICT (community_id, day) DO UPDATE SET promoted = c.promoted + excluded.promoted;
END $$;

CREATE FUNCTION tier_changes_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM promotions_add(array_agg(n.community_id), array_agg(n.at), array_agg(1))
    FROM new_rows AS n WHERE n.promotion AND n.visible;
    RETURN NULL;
END $$;

CREATE FUNCTION tier_changes_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM promotions_add(array_agg(o.community_id), array_agg(o.at), array_agg(-1))
    FROM old_rows AS o WHERE o.promotion AND o.visible;
    RETURN NULL;
END $$;

CREATE FUNCTION tier_changes_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM promotions_add(array_agg(change.community_id), array_agg(change.at), array_agg(change.sign))
    FROM (
        SELECT n.community_id, n.at, 1 AS sign FROM new_rows AS n WHERE n.promotion AND n.visible
        UNION ALL
        SELECT o.community_id, o.at, -1 FROM old_rows AS o WHERE o.promotion AND o.visible
    ) AS change;
    RETURN NULL;
END $$;

CREATE TRIGGER tier_changes_inserted AFTER INSERT ON tier_changes
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tier_changes_inserted();
CREATE TRIGGER tier_changes_deleted AFTER DELETE ON tier_changes
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION tier_changes_deleted();
CREATE TRIGGER tier_changes_updated AFTER UPDATE ON tier_changes
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tier_changes_updated();

-- Gives the changed profiles, and those whose rank the change moved across a rank tier's edge, the tier they now hold,
-- and records each change once. To be called at the end of a transaction that holds the community's lock.
--
-- A rank tier is held from the conviction of its last rank's member up, so that equals share it. A tie of more than a
-- thousand members across the edge (a community in which hardly anyone has scored) shares no rank tier: without that
-- bound one event could move the tier of every member.
CREATE FUNCTION tiers_settle(in_community uuid, changed uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    rank_tier record;
    new_cut bigint;
    crossed uuid[] := changed;
    -- The transaction's own time may lie before that of one whose lock it waited for.
    settled_at timestamptz := clock_timestamp();
BEGIN
    FOR rank_tier IN
        SELECT p.tier, p.last_rank, p.cut FROM tier_policies AS p
        WHERE p.community_id = in_community AND p.last_rank IS NOT NULL
        ORDER BY p.last_rank
    LOOP
        SELECT s.conviction INTO new_cut FROM scores AS s
        WHERE s.community_id = in_community AND s.visible
        ORDER BY s.conviction DESC, s.profile_id DESC
        OFFSET rank_tier.last_rank - 1 LIMIT 1;
        IF NOT FOUND THEN
            new_cut := -9223372036854775808;
        ELSIF members_above(in_community, 1, new_cut - 1) > greatest(1000, rank_tier.last_rank) THEN
            new_cut := new_cut + 1;
        END IF;
        IF new_cut <> rank_tier.cut THEN
            UPDATE tier_policies AS p SET cut = new_cut WHERE p.community_id = in_community AND p.tier = rank_tier.tier;
            crossed := crossed || ARRAY(
                SELECT s.profile_id FROM scores AS s
                WHERE s.community_id = in_community AND s.visible
                    AND s.conviction >= least(new_cut, rank_tier.cut)
                    AND s.conviction < greatest(new_cut, rank_tier.cut)
            );
        END IF;
    END LOOP;

    WITH held AS MATERIALIZED (
        SELECT p.ctid AS place, p.tier AS old, p.tier_given, coalesce((
            SELECT t.tier FROM tier_policies AS t
            WHERE t.community_id = in_community AND t.cut <= s.conviction
            ORDER BY t.last_rank LIMIT 1
        ), (
            SELECT t.tier FROM tier_policies AS t
            WHERE t.community_id = in_community AND t.from_conviction <= s.conviction
            ORDER BY t.from_conviction DESC LIMIT 1
        )) AS new
        FROM (SELECT DISTINCT unnest(crossed) AS profile_id) AS candidate
        CROSS JOIN LATERAL (SELECT p.ctid, p.* FROM profiles AS p
            WHERE p.community_id = in_community AND p.profile_id = candidate.profile_id LIMIT 1) AS p
        CROSS JOIN LATERAL (SELECT * FROM scores AS s
            WHERE s.community_id = in_community AND s.profile_id = candidate.profile_id LIMIT 1) AS s
        WHERE p.visible
    ), moved AS (
        UPDATE profiles AS p SET tier = held.new, tier_given = true
        FROM held
        WHERE p.ctid = held.place AND (held.old IS DISTINCT FROM held.new OR NOT held.tier_given)
        RETURNING p.profile_id, held.old, held.new, held.tier_given
    )
    INSERT INTO tier_changes (community_id, profile_id, from_tier, to_tier, promotion, at)
    SELECT in_community, moved.profile_id, moved.old, moved.new,
        -- Tiers below every tier, and tiers of a policy since replaced, come last.
        coalesce(after.place, 32767) < coalesce(before.place, 32767), settled_at
    FROM moved
    LEFT JOIN tier_policies AS before ON before.community_id = in_community AND before.tier = moved.old
    LEFT JOIN tier_policies AS after ON after.community_id = in_community AND after.tier = moved.new
    WHERE moved.tier_given AND moved.old IS DISTINCT FROM moved.new
    ORDER BY moved.profile_id;
END $$;
