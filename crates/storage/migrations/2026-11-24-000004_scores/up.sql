-- A profile's scores, apart from the profile: they change most often, and a narrow row with few indexes makes that cheap.
CREATE TABLE scores (
    community_id uuid NOT NULL,
    profile_id uuid NOT NULL,
    conviction bigint NOT NULL DEFAULT 0 CHECK (conviction BETWEEN -9007199254740991 AND 9007199254740991),
    conviction_at timestamptz,
    conviction_event uuid,
    activity bigint NOT NULL DEFAULT 0 CHECK (activity BETWEEN 0 AND 9007199254740991),
    -- The last event that set the activity; what was added after it is in activity_adds.
    activity_at timestamptz,
    activity_event uuid,
    last_active_at timestamptz,
    -- The profile's, kept by a trigger so that the lists' indexes hold visible members only.
    visible boolean NOT NULL,
    PRIMARY KEY (community_id, profile_id),
    FOREIGN KEY (community_id, profile_id) REFERENCES profiles
) WITH (fillfactor = 80);

CREATE INDEX scores_by_conviction ON scores (community_id, conviction, profile_id) WHERE visible;
CREATE INDEX scores_by_activity ON scores (community_id, activity, profile_id) WHERE visible AND activity > 0;

-- Activity added since it was last set. Kept because the event that sets it may arrive after later additions.
CREATE TABLE activity_adds (
    community_id uuid NOT NULL,
    profile_id uuid NOT NULL,
    at timestamptz NOT NULL,
    event_id uuid NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (community_id, profile_id, at, event_id),
    FOREIGN KEY (community_id, profile_id) REFERENCES profiles
);

CREATE FUNCTION score_counts_add(communities uuid[], convictions bigint[], active date[], signs integer[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF communities IS NULL THEN
        RETURN;
    END IF;

    INSERT INTO community_counts AS c (community_id, conviction_total)
    SELECT change.community_id, sum(change.sign * change.conviction)
    FROM unnest(communities, convictions, signs) AS change (community_id, conviction, sign)
    GROUP BY 1 HAVING sum(change.sign * change.conviction) <> 0 ORDER BY 1
    ON CONFLICT (community_id) DO UPDATE SET conviction_total = c.conviction_total + excluded.conviction_total;

    INSERT INTO community_days AS c (community_id, day, active)
    SELECT change.community_id, change.day, sum(change.sign)
    FROM unnest(communities, active, signs) AS change (community_id, day, sign)
    WHERE change.day IS NOT NULL
    GROUP BY 1, 2 HAVING sum(change.sign) <> 0 ORDER BY 1, 2
    ON CONFLICT (community_id, day) DO UPDATE SET active = c.active + excluded.active;

    PERFORM rank_counts_add(1, communities, convictions, signs);
END $$;

CREATE FUNCTION scores_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM score_counts_add(
        array_agg(n.community_id), array_agg(n.conviction), array_agg(utc_day(n.last_active_at)), array_agg(1)
    )
    FROM new_rows AS n WHERE n.visible;
    RETURN NULL;
END $$;

CREATE FUNCTION scores_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM score_counts_add(
        array_agg(change.community_id), array_agg(change.conviction), array_agg(utc_day(change.last_active_at)),
        array_agg(change.sign)
    )
    FROM (
        SELECT n.community_id, n.conviction, n.last_active_at, 1 AS sign FROM new_rows AS n WHERE n.visible
        UNION ALL
        SELECT o.community_id, o.conviction, o.last_active_at, -1 FROM old_rows AS o WHERE o.visible
    ) AS change;
    RETURN NULL;
END $$;

CREATE TRIGGER scores_inserted AFTER INSERT ON scores
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION scores_inserted();
CREATE TRIGGER scores_updated AFTER UPDATE ON scores
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION scores_updated();

-- Rows are updated by their place, found one by one by their key: whatever the planner believes of a table that it has no
-- statistics of yet, it cannot read all of it. Writers hold the community's lock, so a place does not change meanwhile.
CREATE FUNCTION profiles_visibility_to_scores() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE scores AS s SET visible = change.visible
    FROM (
        SELECT v.community_id, v.profile_id, bool_or(v.visible) FILTER (WHERE v.new) AS visible
        FROM (
            SELECT n.community_id, n.profile_id, n.visible, true AS new FROM new_rows AS n
            UNION ALL
            SELECT o.community_id, o.profile_id, o.visible, false FROM old_rows AS o
        ) AS v
        GROUP BY 1, 2 HAVING bool_or(v.visible) <> bool_and(v.visible)
    ) AS change
    CROSS JOIN LATERAL (SELECT r.ctid FROM scores AS r
        WHERE r.community_id = change.community_id AND r.profile_id = change.profile_id LIMIT 1) AS row
    WHERE s.ctid = row.ctid;
    RETURN NULL;
END $$;

CREATE TRIGGER profiles_visibility_to_scores AFTER UPDATE ON profiles
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION profiles_visibility_to_scores();
