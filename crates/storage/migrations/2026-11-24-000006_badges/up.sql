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
    PRIMARY KEY (community_id, badge_id)
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
    PRIMARY KEY (community_id, profile_id, kind, at, op_id)
);

-- Finds whom a person awarded, for when that person is erased.
CREATE INDEX badge_ops_by_awarder ON badge_ops (community_id, by) WHERE by IS NOT NULL;

-- How many visible members hold each kind. A kind that was ever awarded stays.
CREATE TABLE badge_kinds (
    community_id uuid NOT NULL REFERENCES communities,
    kind text COLLATE "C" NOT NULL,
    holders bigint NOT NULL DEFAULT 0,
    first_awarded_at timestamptz NOT NULL,
    PRIMARY KEY (community_id, kind)
) WITH (fillfactor = 50);

-- Makes the badges of the given profiles and kinds agree with their operations, given that these changed from `since`
-- on and agreed before. In the order of time and id, an award takes effect unless the operation before it is an award
-- too, and the next revocation ends it.
--
-- Answers what came of it: sign 1 for each badge that is held now, -1 for each that no longer is, and 0 for one that was
-- revoked before it was written, which still makes its kind known. An operation takes effect on itself, on the award
-- before it and on the award behind it, so there are at most three rows an operation.
CREATE FUNCTION badges_settle(in_community uuid, profile_ids uuid[], kinds text[], since timestamptz[])
RETURNS TABLE (of_profile uuid, of_kind text, of_date timestamptz, sign integer) LANGUAGE plpgsql AS $$
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
    RETURN QUERY WITH gone AS (
        DELETE FROM badges AS b
        USING unnest(profile_ids, kinds, since) AS pair (profile_id, kind, since)
            CROSS JOIN LATERAL (SELECT r.ctid, r.badge_id FROM badges AS r
                WHERE r.community_id = in_community AND r.profile_id = pair.profile_id AND r.kind = pair.kind
                    AND r.awarded_at >= pair.since OFFSET 0) AS row
        WHERE b.ctid = row.ctid AND row.badge_id <> ALL (ARRAY(SELECT w.badge_id FROM unnest(wanted) AS w))
        RETURNING b.profile_id, b.kind, b.awarded_at, b.revoked_at
    )
    SELECT g.profile_id, g.kind, g.awarded_at, -1 FROM gone AS g WHERE g.revoked_at IS NULL;

    RETURN QUERY WITH ended AS (
        UPDATE badges AS b SET revoked_at = w.revoked_at, revoked_by = w.revoked_by, revoke_reason = w.revoke_reason
        FROM unnest(wanted) AS w
            CROSS JOIN LATERAL (SELECT r.ctid, r.revoked_at FROM badges AS r
                WHERE r.community_id = in_community AND r.badge_id = w.badge_id LIMIT 1) AS row
        WHERE b.ctid = row.ctid
            AND (b.revoked_at, b.revoked_by, b.revoke_reason)
                IS DISTINCT FROM (w.revoked_at, w.revoked_by, w.revoke_reason)
        RETURNING b.profile_id, b.kind, b.awarded_at,
            (b.revoked_at IS NULL)::integer - (row.revoked_at IS NULL)::integer AS sign
    )
    SELECT e.profile_id, e.kind, e.awarded_at, e.sign FROM ended AS e WHERE e.sign <> 0;

    RETURN QUERY WITH made AS (
        INSERT INTO badges SELECT w.* FROM unnest(wanted) AS w
        ON CONFLICT (community_id, badge_id) DO NOTHING
        RETURNING badges.profile_id, badges.kind, badges.awarded_at, badges.revoked_at
    )
    SELECT m.profile_id, m.kind, m.awarded_at, (m.revoked_at IS NULL)::integer FROM made AS m;
END $$;
