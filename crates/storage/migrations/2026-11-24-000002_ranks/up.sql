-- Counted score buckets, from which any member's rank is read without counting members.
--
-- A ladder (1 conviction, 2 badges) is a tree of fan-out 256: level 0 counts the visible members at each score, level n
-- those whose score shares all but its last n bytes. To count the members above a score, each level adds the siblings
-- to the right: at most 255 rows a level, whatever the community's size. A shift keeps the order of negative scores,
-- and level 6 holds what is left of 54 bits, 64 buckets.
CREATE TABLE rank_counts (
    community_id uuid NOT NULL,
    ladder smallint NOT NULL,
    level smallint NOT NULL CHECK (level BETWEEN 0 AND 6),
    bucket bigint NOT NULL,
    members bigint NOT NULL,
    PRIMARY KEY (community_id, ladder, level, bucket)
) WITH (fillfactor = 70);

-- How many visible members stand above a score.
CREATE FUNCTION members_above(in_community uuid, in_ladder integer, score bigint) RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN (
        SELECT coalesce(sum(siblings.members), 0)
        FROM generate_series(0, 6) AS step
        CROSS JOIN LATERAL (
            SELECT sum(c.members) AS members
            FROM rank_counts AS c
            WHERE c.community_id = in_community
              AND c.ladder = in_ladder
              AND c.level = step::smallint
              AND c.bucket > (score >> (8 * step))
              AND c.bucket <= CASE step WHEN 6 THEN 32 ELSE (score >> (8 * step)) | 255 END
        ) AS siblings
    );
END $$;

-- How many visible members stand exactly at a score.
CREATE FUNCTION members_at(in_community uuid, in_ladder integer, score bigint) RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE AS $$
BEGIN
    RETURN coalesce((
        SELECT c.members
        FROM rank_counts AS c
        WHERE c.community_id = in_community AND c.ladder = in_ladder AND c.level = 0 AND c.bucket = score
    ), 0);
END $$;
