-- What must hold after any change: every kept number is what plain counting comes to. Each check answers the rows in
-- which the two differ.

-- check rank_counts
WITH counted AS (
    SELECT u.community_id, u.ladder, level, u.score >> (5 * level) AS bucket, count(*) AS members
    FROM (
        SELECT s.community_id, 1 AS ladder, s.conviction AS score FROM scores AS s
        JOIN profiles AS p USING (community_id, profile_id)
        WHERE NOT p.has_left AND NOT p.hidden AND p.erased_at IS NULL
        UNION ALL
        SELECT p.community_id, 2, p.badge_count FROM profiles AS p
        WHERE NOT p.has_left AND NOT p.hidden AND p.erased_at IS NULL
    ) AS u CROSS JOIN generate_series(0, 10) AS level
    GROUP BY 1, 2, 3, 4
)
SELECT ROW(k.*, c.*)::text FROM rank_counts AS k
FULL JOIN counted AS c USING (community_id, ladder, level, bucket)
WHERE k.members IS DISTINCT FROM c.members;

-- check scores.visible
SELECT ROW(p.*, s.*)::text FROM profiles AS p FULL JOIN scores AS s USING (community_id, profile_id)
WHERE s.visible IS DISTINCT FROM (NOT p.has_left AND NOT p.hidden AND p.erased_at IS NULL)
    OR p.visible IS DISTINCT FROM s.visible;

-- check tier_changes.visible
SELECT ROW(c.*)::text FROM tier_changes AS c JOIN profiles AS p USING (community_id, profile_id)
WHERE c.visible <> p.visible;

-- check tier_counts
SELECT ROW(k.*, c.*)::text FROM tier_counts AS k FULL JOIN (
    SELECT community_id, coalesce(tier, '') AS tier, count(*) AS members FROM profiles WHERE visible GROUP BY 1, 2
) AS c USING (community_id, tier)
WHERE coalesce(k.members, 0) <> coalesce(c.members, 0);

-- check community_counts.members
SELECT ROW(k.*)::text FROM community_counts AS k WHERE k.members <>
(SELECT count(*) FROM profiles AS p WHERE p.community_id = k.community_id AND p.visible);

-- check community_counts.conviction_total
SELECT ROW(k.*)::text FROM community_counts AS k WHERE k.conviction_total <>
(SELECT coalesce(sum(s.conviction), 0) FROM scores AS s WHERE s.community_id = k.community_id AND s.visible);

-- check community_counts.badges
SELECT ROW(k.*)::text FROM community_counts AS k WHERE k.badges <>
(SELECT count(*) FROM badges AS b JOIN profiles AS p USING (community_id, profile_id)
 WHERE b.community_id = k.community_id AND p.visible AND b.revoked_at IS NULL);

-- check community_counts of each community
SELECT c.community_id::text FROM communities AS c
WHERE NOT EXISTS (SELECT FROM community_counts AS k WHERE k.community_id = c.community_id);

-- check community_days
SELECT ROW(k.*, c.*)::text FROM community_days AS k FULL JOIN (
    SELECT community_id, day, sum(active) AS active, sum(joined) AS joined, sum(awarded) AS awarded,
        sum(promoted) AS promoted
    FROM (
        SELECT community_id, (last_active_at AT TIME ZONE 'UTC')::date AS day,
            1 AS active, 0 AS joined, 0 AS awarded, 0 AS promoted
        FROM scores WHERE visible AND last_active_at IS NOT NULL
        UNION ALL
        SELECT community_id, (joined_at AT TIME ZONE 'UTC')::date, 0, 1, 0, 0 FROM profiles WHERE visible
        UNION ALL
        SELECT community_id, (awarded_at AT TIME ZONE 'UTC')::date, 0, 0, 1, 0
        FROM badges JOIN profiles USING (community_id, profile_id) WHERE visible AND revoked_at IS NULL
        UNION ALL
        SELECT community_id, (at AT TIME ZONE 'UTC')::date, 0, 0, 0, 1
        FROM tier_changes JOIN profiles AS p USING (community_id, profile_id) WHERE p.visible AND promotion
    ) AS happened GROUP BY 1, 2
) AS c USING (community_id, day)
WHERE (coalesce(k.active, 0), coalesce(k.joined, 0), coalesce(k.awarded, 0), coalesce(k.promoted, 0))
    <> (coalesce(c.active, 0), coalesce(c.joined, 0), coalesce(c.awarded, 0), coalesce(c.promoted, 0));

-- check profiles.badge_count
SELECT ROW(p.*)::text FROM profiles AS p WHERE p.badge_count <>
(SELECT count(*) FROM badges AS b
 WHERE b.community_id = p.community_id AND b.profile_id = p.profile_id AND b.revoked_at IS NULL);

-- check badge_kinds.holders
SELECT ROW(k.*, c.*)::text FROM badge_kinds AS k FULL JOIN (
    SELECT community_id, kind, count(*) AS holders FROM badges JOIN profiles USING (community_id, profile_id)
    WHERE visible AND revoked_at IS NULL GROUP BY 1, 2
) AS c USING (community_id, kind)
WHERE coalesce(k.holders, 0) <> coalesce(c.holders, 0);

-- check nym_tails
WITH counted AS (
    SELECT p.community_id, p.profile_id, substr(p.nym_key, at) AS tail,
        CASE WHEN at = 1 THEN 0
             WHEN translate(substr(p.nym_key, at - 1, 1), E' \t!"#$%&''()*+,-./:;<=>?@[\\]^_`{|}~', '') = ''
             THEN 1 ELSE 2 END AS class
    FROM profiles AS p CROSS JOIN LATERAL generate_series(1, least(length(p.nym_key), 32)) AS at
    WHERE p.visible
)
(SELECT ROW(community_id, profile_id, tail, class::integer)::text FROM nym_tails
 EXCEPT SELECT ROW(community_id, profile_id, tail, class)::text FROM counted)
UNION ALL
(SELECT ROW(community_id, profile_id, tail, class)::text FROM counted
 EXCEPT SELECT ROW(community_id, profile_id, tail, class::integer)::text FROM nym_tails);

-- check badges agree with their operations
SELECT ROW(o.*)::text FROM badge_ops AS o
WHERE o.award AND NOT EXISTS (
    SELECT FROM badges AS b WHERE b.community_id = o.community_id AND b.profile_id = o.profile_id
        AND b.kind = o.kind AND b.awarded_at <= o.at AND (b.revoked_at IS NULL OR b.revoked_at >= o.at));

-- check each change of tier goes on from the one before, and the last leads to the tier held
SELECT ROW(c.*)::text FROM (
    SELECT c.*, lead(c.from_tier, 1, p.tier) OVER w AS then, lead(c.at, 1, 'infinity') OVER w AS then_at
    FROM tier_changes AS c JOIN profiles AS p USING (community_id, profile_id)
    WINDOW w AS (PARTITION BY c.community_id, c.profile_id ORDER BY c.change_id)
) AS c
WHERE c.to_tier IS DISTINCT FROM c.then OR c.from_tier IS NOT DISTINCT FROM c.to_tier OR c.then_at < c.at;
