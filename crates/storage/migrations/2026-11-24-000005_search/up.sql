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

-- The tails of one folded nym. A word starts behind white space or ASCII punctuation. A folded nym
-- has at most 64 characters; what begins behind the 32nd is given up for a bound on what one nym writes and matches. No two
-- tails are of one length, so none has to be told from another, and the planner can put the function in line.
CREATE FUNCTION nym_tails_of(nym_key text) RETURNS TABLE (class smallint, tail text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT
        CASE
            WHEN at = 1 THEN 0
            WHEN substr(nym_key, at - 1, 1) ~ '[[:space:][:punct:]]'::text COLLATE "C" THEN 1
            ELSE 2
        END::smallint,
        substr(nym_key, at)
    FROM generate_series(1, length(left(nym_key, 32))) AS at;
END;
