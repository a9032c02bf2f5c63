-- One award of one kind to one profile; a revoked one stays as history.
CREATE TABLE badges (
    community_id uuid NOT NULL,
    badge_id uuid NOT NULL,
    profile_id uuid NOT NULL,
    kind text COLLATE "C" NOT NULL,
    awarded_at timestamptz NOT NULL,
    awarded_by text,
    reason text,
    revoked_at timestamptz,
    revoked_by text,
    revoke_reason text,
    PRIMARY KEY (community_id, badge_id),
    FOREIGN KEY (community_id, profile_id) REFERENCES profiles
);

-- A kind is held once. This index, not a look before the insert, decides between two concurrent awards.
CREATE UNIQUE INDEX badges_held ON badges (community_id, profile_id, kind) WHERE revoked_at IS NULL;
CREATE INDEX badges_held_by_date ON badges (community_id, profile_id, awarded_at, badge_id) WHERE revoked_at IS NULL;
CREATE INDEX badges_by_profile ON badges (community_id, profile_id, kind, awarded_at, badge_id);

-- Every award and revocation that arrived, with or without effect: an event that arrives late may give an earlier one
-- its effect, or take it.
CREATE TABLE badge_ops (
    community_id uuid NOT NULL,
    profile_id uuid NOT NULL,
    kind text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL,
    op_id uuid NOT NULL,
    award boolean NOT NULL,
    reason text,
    by text,
    PRIMARY KEY (community_id, profile_id, kind, at, op_id),
    FOREIGN KEY (community_id, profile_id) REFERENCES profiles
);

-- Finds whom a person awarded, for when that person is erased.
CREATE INDEX badge_ops_by_awarder ON badge_ops (community_id, by) WHERE by IS NOT NULL;

-- Kept by triggers: how many visible members hold each kind. A kind that was ever awarded stays.
CREATE TABLE badge_kinds (
    community_id uuid NOT NULL REFERENCES communities,
    kind text COLLATE "C" NOT NULL,
    holders bigint NOT NULL DEFAULT 0,
    first_awarded_at timestamptz NOT NULL,
    PRIMARY KEY (community_id, kind)
) WITH (fillfactor = 50);

-- Adds held badges (sign 1) or takes them away (sign -1) in what counts those of visible members. A sign of 0 only makes
-- the kind known.
CREATE FUNCTION visible_badges_add(communities uuid[], kinds text[], dates timestamptz[], signs integer[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF communities IS NULL THEN
        RETURN;
    END IF;

    INSERT INTO badge_kinds AS k (community_id, kind, holders, first_awarded_at)
    SELECT change.community_id, change.kind, sum(change.sign), min(change.at)
    FROM unnest(communities, kinds, dates, signs) AS change (community_id, kind, at, sign)
    GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (community_id, kind) DO UPDATE
    SET holders = k.holders + excluded.holders, first_awarded_at = least(k.first_awarded_at, excluded.first_awarded_at);

    INSERT INTO community_days AS c (community_id, day, awarded)
    SELECT change.community_id, utc_day(change.at), sum(change.sign)
    FROM unnest(communities, dates, signs) AS change (community_id, at, sign)
    GROUP BY 1, 2 HAVING sum(change.sign) <> 0 ORDER BY 1, 2
    ON CONFLICT (community_id, day) DO UPDATE SET awarded = c.awarded + excluded.awarded;
END $$;

-- Adds held badges (sign 1) or takes them away (sign -1) in everything that counts badges.
CREATE FUNCTION badge_counts_add(
    communities uuid[], profile_ids uuid[], kinds text[], dates timestamptz[], signs integer[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    visible_signs integer[];
BEGIN
    IF communities IS NULL THEN
        RETURN;
    END IF;

    SELECT array_agg(CASE WHEN p.visible THEN c.sign ELSE 0 END ORDER BY c.place) INTO visible_signs
    FROM unnest(communities, profile_ids, signs) WITH ORDINALITY AS c (community_id, profile_id, sign, place)
    CROSS JOIN LATERAL (SELECT p.visible FROM profiles AS p
        WHERE p.community_id = c.community_id AND p.profile_id = c.profile_id LIMIT 1) AS p;
    PERFORM visible_badges_add(communities, kinds, dates, visible_signs);

    UPDATE profiles AS p SET badge_count = p.badge_count + change.delta
    FROM (
        SELECT c.community_id, c.profile_id, sum(c.sign)::integer AS delta
        FROM unnest(communities, profile_ids, signs) AS c (community_id, profile_id, sign)
        GROUP BY 1, 2 HAVING sum(c.sign) <> 0
    ) AS change
    CROSS JOIN LATERAL (SELECT r.ctid FROM profiles AS r
        WHERE r.community_id = change.community_id AND r.profile_id = change.profile_id LIMIT 1) AS row
    WHERE p.ctid = row.ctid;
END $$;

-- Who comes into sight brings what they hold into the counts, and who goes takes it along.
CREATE FUNCTION profiles_visibility_to_badges() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM visible_badges_add(
        array_agg(b.community_id), array_agg(b.kind), array_agg(b.awarded_at), array_agg(change.sign)
    )
    FROM (
        SELECT v.community_id, v.profile_id, sum(v.sign)::integer AS sign
        FROM (
            SELECT n.community_id, n.profile_id, 1 AS sign FROM new_rows AS n WHERE n.visible
            UNION ALL
            SELECT o.community_id, o.profile_id, -1 FROM old_rows AS o WHERE o.visible
        ) AS v
        GROUP BY 1, 2 HAVING sum(v.sign) <> 0
    ) AS change
    JOIN badges AS b
        ON b.community_id = change.community_id AND b.profile_id = change.profile_id AND b.revoked_at IS NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER profiles_visibility_to_badges AFTER UPDATE ON profiles
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION profiles_visibility_to_badges();

CREATE FUNCTION badges_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM badge_counts_add(
        array_agg(n.community_id), array_agg(n.profile_id), array_agg(n.kind), array_agg(n.awarded_at),
        -- One that was revoked before it was written still makes its kind known.
        array_agg((n.revoked_at IS NULL)::integer)
    )
    FROM new_rows AS n;
    RETURN NULL;
END $$;

CREATE FUNCTION badges_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM badge_counts_add(
        array_agg(o.community_id), array_agg(o.profile_id), array_agg(o.kind), array_agg(o.awarded_at), array_agg(-1)
    )
    FROM old_rows AS o WHERE o.revoked_at IS NULL;
    RETURN NULL;
END $$;

CREATE FUNCTION badges_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM badge_counts_add(
        array_agg(change.community_id), array_agg(change.profile_id), array_agg(change.kind),
        array_agg(change.awarded_at), array_agg(change.sign)
    )
    FROM (
        SELECT n.community_id, n.profile_id, n.kind, n.awarded_at, 1 AS sign FROM new_rows AS n
        WHERE n.revoked_at IS NULL
        UNION ALL
        SELECT o.community_id, o.profile_id, o.kind, o.awarded_at, -1 FROM old_rows AS o WHERE o.revoked_at IS NULL
    ) AS change;
    RETURN NULL;
END $$;

CREATE TRIGGER badges_inserted AFTER INSERT ON badges
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION badges_inserted();
CREATE TRIGGER badges_deleted AFTER DELETE ON badges
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION badges_deleted();
CREATE TRIGGER badges_updated AFTER UPDATE ON badges
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION badges_updated();

-- Makes the badges of the given profiles and kinds agree with their operations, given that these changed from `since`
-- on and agreed before. In the order of time and id, an award takes effect unless the operation before it is an award
-- too, and the next revocation ends it.
CREATE FUNCTION badges_settle(in_community uuid, profile_ids uuid[], kinds text[], since timestamptz[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted badges[];
BEGIN
    SELECT array_agg(ROW(in_community, taken.op_id, taken.profile_id, taken.kind, taken.at, taken.by, taken.reason,
        ending.at, ending.by, ending.reason)::badges)
    INTO wanted
    FROM unnest(profile_ids, kinds, since) AS pair (profile_id, kind, since)
    -- The last award before the change may now end at another time.
    CROSS JOIN LATERAL (
        SELECT coalesce(max(b.awarded_at), pair.since) AS at FROM badges AS b
        WHERE b.community_id = in_community AND b.profile_id = pair.profile_id AND b.kind = pair.kind
            AND b.awarded_at < pair.since
    ) AS start
    CROSS JOIN LATERAL (
        SELECT o.op_id, pair.profile_id, pair.kind, o.at, o.by, o.reason, o.award,
            coalesce(lag(o.award) OVER (ORDER BY o.at, o.op_id), (
                SELECT earlier.award FROM badge_ops AS earlier
                WHERE earlier.community_id = in_community AND earlier.profile_id = pair.profile_id
                    AND earlier.kind = pair.kind AND earlier.at < start.at
                ORDER BY earlier.at DESC, earlier.op_id DESC LIMIT 1
            ), false) AS after_award
        FROM badge_ops AS o
        WHERE o.community_id = in_community AND o.profile_id = pair.profile_id AND o.kind = pair.kind
            AND o.at >= start.at
    ) AS taken
    LEFT JOIN LATERAL (
        SELECT r.at, r.by, r.reason FROM badge_ops AS r
        WHERE r.community_id = in_community AND r.profile_id = taken.profile_id AND r.kind = taken.kind
            AND NOT r.award AND (r.at, r.op_id) > (taken.at, taken.op_id)
        ORDER BY r.at, r.op_id LIMIT 1
    ) AS ending ON true
    WHERE taken.award AND NOT taken.after_award;

    -- What is no longer held goes first, so that a kind is never held twice.
    DELETE FROM badges AS b
    USING unnest(profile_ids, kinds, since) AS pair (profile_id, kind, since)
        CROSS JOIN LATERAL (SELECT r.ctid, r.badge_id FROM badges AS r
            WHERE r.community_id = in_community AND r.profile_id = pair.profile_id AND r.kind = pair.kind
                AND r.awarded_at >= pair.since OFFSET 0) AS row
    WHERE b.ctid = row.ctid AND row.badge_id <> ALL (ARRAY(SELECT w.badge_id FROM unnest(wanted) AS w));

    UPDATE badges AS b SET revoked_at = w.revoked_at, revoked_by = w.revoked_by, revoke_reason = w.revoke_reason
    FROM unnest(wanted) AS w
        CROSS JOIN LATERAL (SELECT r.ctid FROM badges AS r
            WHERE r.community_id = in_community AND r.badge_id = w.badge_id LIMIT 1) AS row
    WHERE b.ctid = row.ctid
        AND (b.revoked_at, b.revoked_by, b.revoke_reason)
            IS DISTINCT FROM (w.revoked_at, w.revoked_by, w.revoke_reason);

    INSERT INTO badges SELECT w.* FROM unnest(wanted) AS w
    ON CONFLICT (community_id, badge_id) DO NOTHING;
END $$;
