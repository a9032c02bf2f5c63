-- Counted score buckets, from which any member's rank is read without counting members.
--
-- A ladder (1 conviction, 2 badges) is a tree of fan-out 256: level 0 counts the visible members at each score, level n
-- those whose score shares all but its last n bytes. To count the members above a score, each level adds the siblings
-- to the right: at most 255 rows a level, whatever the community's size. A shift keeps the order of negative scores,
-- and level 6 holds what is left of 54 bits, 64 buckets.
CREATE TABLE rank_counts (
    community_id uuid NOT NULL REFERENCES communities,
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

-- Adds members (or takes them away) at scores. The order by key keeps two writers from waiting for each other in a
-- circle. A bucket without members is removed: scores that nobody has any more leave nothing behind.
CREATE FUNCTION rank_counts_add(in_ladder integer, communities uuid[], scores bigint[], deltas integer[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    emptied uuid[];
    levels smallint[];
    buckets bigint[];
BEGIN
    WITH counted AS (
        INSERT INTO rank_counts AS c (community_id, ladder, level, bucket, members)
        SELECT change.community_id, in_ladder, step, change.score >> (8 * step), sum(change.delta)
        FROM unnest(communities, scores, deltas) AS change (community_id, score, delta)
        CROSS JOIN generate_series(0, 6) AS step
        GROUP BY 1, 2, 3, 4
        HAVING sum(change.delta) <> 0
        ORDER BY 1, 2, 3, 4
        ON CONFLICT (community_id, ladder, level, bucket) DO UPDATE SET members = c.members + excluded.members
        RETURNING c.community_id, c.level, c.bucket, c.members
    )
    SELECT array_agg(n.community_id), array_agg(n.level), array_agg(n.bucket) INTO emptied, levels, buckets
    FROM counted AS n WHERE n.members = 0;

    IF emptied IS NOT NULL THEN
        DELETE FROM rank_counts AS c
        USING unnest(emptied, levels, buckets) AS e (community_id, level, bucket)
        WHERE c.community_id = e.community_id AND c.ladder = in_ladder AND c.level = e.level AND c.bucket = e.bucket
            AND c.members = 0;
    END IF;
END $$;
