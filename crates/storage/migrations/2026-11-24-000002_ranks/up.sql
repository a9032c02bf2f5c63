-- Counted score buckets, from which any member's rank is read without counting members.
--
-- A ladder (1 conviction, 2 badges) is a tree of fan-out 32: level 0 counts the visible members at each score, level n
-- those whose score shares all but its last 5 n bits. To count the members above a score, each level adds the siblings
-- to the right: at most 31 rows a level, whatever the community's size. A shift keeps the order of negative scores, and
-- level 10 holds what is left of 54 bits, 16 buckets. A wider tree has fewer levels and reads more rows: of 256 a rank
-- took half as long again.
CREATE TABLE rank_counts (
    community_id uuid NOT NULL,
    ladder smallint NOT NULL,
    level smallint NOT NULL CHECK (level BETWEEN 0 AND 10),
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
        FROM generate_series(0, 10) AS step
        CROSS JOIN LATERAL (
            SELECT sum(c.members) AS members
            FROM rank_counts AS c
            WHERE c.community_id = in_community
              AND c.ladder = in_ladder
              AND c.level = step::smallint
              AND c.bucket > (score >> (5 * step))
              AND c.bucket <= CASE step WHEN 10 THEN 7 ELSE (score >> (5 * step)) | 31 END
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
