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

-- The tails of one folded nym. A word starts behind white space or ASCII punctuation.
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
    FROM generate_series(1, length(nym_key)) AS at;
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
BEGIN
    DELETE FROM nym_tails AS d
    USING old_rows AS o
        JOIN new_rows AS n USING (community_id, profile_id)
        CROSS JOIN LATERAL nym_tails_of(o.nym_key) AS t
    WHERE o.visible AND (NOT n.visible OR o.nym_key <> n.nym_key)
        AND d.community_id = o.community_id AND d.class = t.class AND d.tail = t.tail COLLATE "C"
        AND d.profile_id = o.profile_id;

    INSERT INTO nym_tails
    SELECT n.community_id, t.class, t.tail, n.profile_id
    FROM new_rows AS n
        JOIN old_rows AS o USING (community_id, profile_id)
        CROSS JOIN LATERAL nym_tails_of(n.nym_key) AS t
    WHERE n.visible AND (NOT o.visible OR o.nym_key <> n.nym_key);
    RETURN NULL;
END $$;

CREATE TRIGGER profiles_nym_inserted AFTER INSERT ON profiles
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION profiles_nym_inserted();
CREATE TRIGGER profiles_nym_updated AFTER UPDATE ON profiles
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION profiles_nym_updated();
