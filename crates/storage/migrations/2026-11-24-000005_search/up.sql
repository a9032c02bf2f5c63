-- Every tail of every visible member's nym, so that a search for any text, of one letter or twenty, anywhere in a nym,
-- is one short range of one index. A trigram index finds nothing shorter than three letters and cannot return its
-- matches in order.
--
-- class 0: the whole nym; 1: from the start of a later word; 2: from inside a word.
CREATE TABLE nym_tails (
    community_id uuid NOT NULL,
    class smallint NOT NULL,
    tail text COLLATE "C" NOT NULL,
    profile_id uuid NOT NULL,
    PRIMARY KEY (community_id, class, tail, profile_id)
);

-- The tails of one folded nym. A word starts behind white space or ASCII punctuation. A nym has at most 32 characters;
-- folding can make many of one, and a match behind the 32nd is given up for a bound on what one nym writes and matches.
CREATE FUNCTION nym_tails_of(nym_key text) RETURNS TABLE (class smallint, tail text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT DISTINCT
        CASE
            WHEN at = 1 THEN 0
            WHEN substr(nym_key, at - 1, 1) ~ '[[:space:][:punct:]]'::text COLLATE "C" THEN 1
            ELSE 2
        END::smallint,
        substr(nym_key, at)
    FROM generate_series(1, length(left(nym_key, 32))) AS at;
END;

CREATE FUNCTION profiles_nym_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO nym_tails
    SELECT n.community_id, t.class, t.tail, n.profile_id
    FROM new_rows AS n CROSS JOIN LATERAL nym_tails_of(n.nym_key) AS t
    WHERE n.visible;
    RETURN NULL;
END $$;

CREATE FUNCTION profiles_nym_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    communities uuid[];
    ids uuid[];
    before text[];
    after text[];
BEGIN
    -- A key is null where the member is not visible.
    SELECT array_agg(m.community_id), array_agg(m.profile_id), array_agg(m.before), array_agg(m.after)
    INTO communities, ids, before, after
    FROM (
        SELECT v.community_id, v.profile_id, max(v.before) AS before, max(v.after) AS after
        FROM (
            SELECT o.community_id, o.profile_id, o.nym_key AS before, NULL AS after FROM old_rows AS o WHERE o.visible
            UNION ALL
            SELECT n.community_id, n.profile_id, NULL, n.nym_key FROM new_rows AS n WHERE n.visible
        ) AS v
        GROUP BY 1, 2
    ) AS m
    WHERE m.before IS DISTINCT FROM m.after;
    IF communities IS NULL THEN
        RETURN NULL;
    END IF;

    DELETE FROM nym_tails AS d
    USING unnest(communities, ids, before) AS m (community_id, profile_id, nym_key)
        CROSS JOIN LATERAL nym_tails_of(m.nym_key) AS t
        CROSS JOIN LATERAL (SELECT r.ctid FROM nym_tails AS r
            WHERE r.community_id = m.community_id AND r.class = t.class AND r.tail = t.tail COLLATE "C"
                AND r.profile_id = m.profile_id LIMIT 1) AS row
    WHERE d.ctid = row.ctid;

    INSERT INTO nym_tails
    SELECT m.community_id, t.class, t.tail, m.profile_id
    FROM unnest(communities, ids, after) AS m (community_id, profile_id, nym_key)
        CROSS JOIN LATERAL nym_tails_of(m.nym_key) AS t;
    RETURN NULL;
END $$;

CREATE TRIGGER profiles_nym_inserted AFTER INSERT ON profiles
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION profiles_nym_inserted();
CREATE TRIGGER profiles_nym_updated AFTER UPDATE ON profiles
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION profiles_nym_updated();
