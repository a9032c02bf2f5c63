-- What a community of :members members, with twenty small ones beside it, comes to when events have made it: the same
-- every time for one :seed, ending at :anchor. Each step fills the tables that it names; the loader takes their keys and
-- indexes away before and makes them again after. Steps of one stage do not read what the others write.
--
-- Whoever changes a table or what is kept in it changes this file, and nothing else here.

-- stage 1: people
-- A number from 0 up to 1 that looks random: by what it is for, and whose it is.
CREATE FUNCTION seed_share(salt bigint, n bigint) RETURNS float8 LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN ((hashint8extended(n, salt + :seed * 1000) >> 1) & 9007199254740991)::float8 / 9007199254740992;

CREATE FUNCTION seed_uuid(what text, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN md5(what || ' ' || n || ' ' || :seed)::uuid;

CREATE FUNCTION seed_pick(choices text[], share float8) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN choices[1 + floor(share * array_length(choices, 1))::integer];

-- To the millisecond, as events' times are.
CREATE FUNCTION seed_between(share float8, since timestamptz, until timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN date_trunc('milliseconds', since + share * (until - since));

CREATE UNLOGGED TABLE seed_communities AS
SELECT n AS number, seed_uuid('community', n) AS community_id, (810000000000000000 + n)::text AS guild_id,
    CASE n WHEN 0 THEN :members::bigint ELSE (10 * n * n / 8 + 5)::bigint END AS members
FROM generate_series(0, 20) AS n;

INSERT INTO communities (community_id, guild_id, name, name_at, name_event, active_at, active_event, created_at)
SELECT community_id, guild_id, 'Sietch ' || number, :anchor - interval '401 days', seed_uuid('name', number),
    :anchor - interval '401 days', seed_uuid('name', number), :anchor - interval '401 days'
FROM seed_communities;

INSERT INTO community_stripes (community_id, stripe)
SELECT community_id, stripe FROM seed_communities, generate_series(0, 3) AS stripe;

CREATE UNLOGGED TABLE seed_members AS
WITH numbered AS (
    SELECT c.community_id, 10000000::bigint * c.number + i AS n
    FROM seed_communities AS c CROSS JOIN LATERAL generate_series(1, c.members) AS i
), dated AS (
    SELECT *, seed_between(seed_share(1, n), :anchor - interval '400 days', :anchor - interval '1 hour') AS joined_at
    FROM numbered
)
SELECT community_id, n, joined_at,
    -- As the worker makes them: ordered by when they were made, then at random.
    (lpad(to_hex((extract(epoch FROM :anchor) * 1000)::bigint - 10000000 + n % 10000000), 12, '0') || '7'
        || substr(md5(n || ' profile'), 1, 3) || '8' || substr(md5(n || ' profile'), 4, 15))::uuid AS profile_id,
    (100000000000000000 + n * 7919)::text AS user_id,
    seed_share(2, n) < 0.02 AS has_left,
    seed_share(3, n) < 0.002 AS hidden,
    -- Two of five never did anything; half of those never scored either.
    seed_share(4, n) < 0.6 AS is_active,
    CASE
        WHEN seed_share(4, n) >= 0.8 THEN 0
        WHEN seed_share(5, n) < 0.01 THEN -1 - floor(200 * seed_share(6, n))::bigint
        ELSE floor(40 * (power(1 - seed_share(6, n), -0.8) - 1))::bigint
    END AS conviction,
    floor(5 * power(1 - seed_share(7, n), -0.7))::bigint AS activity,
    -- Most were last active lately.
    seed_between(1 - power(seed_share(8, n), 2), joined_at, :anchor) AS last_active_at,
    -- Awards: five and a half on average, of which one in twenty was revoked.
    least(60, floor(-5.9 * ln(1 - seed_share(9, n))))::integer AS awards
FROM dated;

-- stage 2: tiers = tier_policies
INSERT INTO tier_policies (community_id, tier, place, from_conviction, last_rank, cut)
SELECT c.community_id, t.tier, t.place, t.from_conviction, t.last_rank,
    -- The conviction of the last rank's member, above which ties of more than a thousand do not share the tier.
    CASE WHEN t.last_rank IS NOT NULL THEN
        coalesce((
            SELECT CASE WHEN ties > greatest(1000, t.last_rank) THEN conviction + 1 ELSE conviction END
            FROM (
                SELECT m.conviction, row_number() OVER (ORDER BY m.conviction DESC) AS place,
                    count(*) OVER (ORDER BY m.conviction DESC) AS ties
                FROM seed_members AS m
                WHERE m.community_id = c.community_id AND NOT m.has_left AND NOT m.hidden
            ) AS ranked
            WHERE place = t.last_rank
        ), -9223372036854775808)
    END
FROM seed_communities AS c
CROSS JOIN (VALUES ('naib', 0, NULL, 7), ('fedaykin', 1, NULL, 69), ('sayyadina', 2, 1000, NULL),
    ('sietch', 3, 500, NULL), ('stillsuit', 4, 100, NULL), ('fremen', 5, 0, NULL)
) AS t (tier, place, from_conviction, last_rank);

-- stage 3: profiles = profiles
INSERT INTO profiles (community_id, profile_id, user_id, wallet, username, username_key, username_at, username_event,
    nick, nick_key, roles, nick_at, nick_event, has_left, presence_at, presence_event, hidden, joined_at, join_known,
    tier, tier_given, badge_count)
SELECT m.community_id, m.profile_id, m.user_id,
    CASE WHEN seed_share(10, n) < 0.3 THEN '0x' || md5(n || ' wallet') END,
    u.username, u.username, m.joined_at, seed_uuid('join', n),
    k.nick, k.nick_key, CASE WHEN seed_share(11, n) < 0.5 THEN '{3001,3002}' ELSE '{}' END::text[],
    CASE WHEN k.nick IS NOT NULL THEN m.joined_at + interval '1 minute' END,
    CASE WHEN k.nick IS NOT NULL THEN seed_uuid('nick', n) END,
    m.has_left, CASE WHEN m.has_left THEN :anchor ELSE m.joined_at END, seed_uuid('join', n), m.hidden, m.joined_at, true,
    coalesce((
        SELECT t.tier FROM tier_policies AS t
        WHERE t.community_id = m.community_id AND t.cut <= m.conviction ORDER BY t.last_rank LIMIT 1
    ), (
        SELECT t.tier FROM tier_policies AS t
        WHERE t.community_id = m.community_id AND t.from_conviction <= m.conviction ORDER BY t.from_conviction DESC LIMIT 1
    )),
    true,
    (SELECT count(*) FROM generate_series(1, m.awards) AS j WHERE seed_share(20, n * 64 + j) >= 0.05)
FROM seed_members AS m
CROSS JOIN LATERAL (
    -- Two or three syllables, and for most a number.
    SELECT seed_pick(:syllables, seed_share(12, n)) || seed_pick(:syllables, seed_share(13, n))
        || CASE WHEN seed_share(14, n) < 0.5 THEN seed_pick(:syllables, seed_share(15, n)) ELSE '' END
        || CASE WHEN seed_share(16, n) < 0.1 THEN '_' ELSE '' END
        || CASE WHEN seed_share(16, n) < 0.7 THEN floor(1000 * seed_share(17, n))::text ELSE '' END AS username
) AS u
LEFT JOIN LATERAL (
    -- One in five has a nickname, as people really set them.
    SELECT seed_pick(:names, seed_share(19, m.n)) || ' ' || u.username AS nick,
        seed_pick(:keys, seed_share(19, m.n)) || ' ' || u.username AS nick_key
    WHERE seed_share(18, m.n) < 0.2
) AS k ON true;

-- stage 4: badges = badges, badge_ops
INSERT INTO badges (community_id, badge_id, profile_id, kind, awarded_at, awarded_by, reason, revoked_at, revoked_by,
    revoke_reason)
SELECT m.community_id, seed_uuid('award', n * 64 + j), m.profile_id,
    'kind_' || lpad(((floor(64 * seed_share(21, n))::integer + j * 29) % 64)::text, 2, '0'), d.awarded_at,
    'naib', 'earned in the desert', CASE WHEN d.revoked THEN d.awarded_at + interval '1 hour' END,
    CASE WHEN d.revoked THEN 'naib' END, CASE WHEN d.revoked THEN 'water debt' END
FROM seed_members AS m
CROSS JOIN LATERAL generate_series(1, m.awards) AS j
CROSS JOIN LATERAL (
    SELECT seed_share(20, n * 64 + j) < 0.05 AS revoked,
        seed_between((j - seed_share(22, n * 64 + j)) / (m.awards + 1), m.joined_at, :anchor) AS awarded_at
) AS d;

INSERT INTO badge_ops (community_id, profile_id, kind, at, op_id, award, reason, by)
SELECT community_id, profile_id, kind, awarded_at, badge_id, true, reason, awarded_by FROM badges;
INSERT INTO badge_ops (community_id, profile_id, kind, at, op_id, award, reason, by)
SELECT community_id, profile_id, kind, revoked_at, md5(badge_id || ' revoke')::uuid, false, revoke_reason, revoked_by
FROM badges WHERE revoked_at IS NOT NULL;

-- stage 4: tails of nyms = nym_tails
INSERT INTO nym_tails (community_id, class, tail, profile_id)
SELECT p.community_id,
    CASE WHEN at = 1 THEN 0 WHEN substr(p.nym_key, at - 1, 1) ~ '[[:space:][:punct:]]' COLLATE "C" THEN 1 ELSE 2 END,
    substr(p.nym_key, at), p.profile_id
FROM profiles AS p CROSS JOIN LATERAL generate_series(1, least(length(p.nym_key), 32)) AS at
WHERE p.visible;

-- stage 4: scores = scores, activity_adds
-- Of half of those who were active it was set, of the others added.
INSERT INTO scores (community_id, profile_id, conviction, conviction_at, conviction_event, activity, activity_at,
    activity_event, last_active_at, visible)
SELECT community_id, profile_id, conviction, CASE WHEN conviction <> 0 THEN joined_at + interval '2 minutes' END,
    CASE WHEN conviction <> 0 THEN seed_uuid('score', n) END, CASE WHEN is_active THEN activity ELSE 0 END,
    CASE WHEN is_active AND n % 2 = 0 THEN last_active_at END,
    CASE WHEN is_active AND n % 2 = 0 THEN seed_uuid('activity', n) END, CASE WHEN is_active THEN last_active_at END,
    NOT has_left AND NOT hidden
FROM seed_members;

INSERT INTO activity_adds (community_id, profile_id, at, event_id, amount)
SELECT community_id, profile_id, last_active_at, seed_uuid('activity', n), activity
FROM seed_members WHERE is_active AND n % 2 = 1;

-- stage 4: changes of tier = tier_changes
-- Whoever stands above the lowest tier once began there.
INSERT INTO tier_changes (community_id, profile_id, from_tier, to_tier, promotion, at, visible)
SELECT p.community_id, p.profile_id, 'fremen', p.tier, true,
    seed_between(seed_share(23, m.n), m.joined_at, :anchor) AS at, p.visible
FROM profiles AS p JOIN seed_members AS m USING (community_id, profile_id)
WHERE p.tier <> 'fremen'
ORDER BY at;

-- stage 4: ids of events = applied_events
-- The last month's: the others are forgotten.
INSERT INTO applied_events (community_id, event_id, applied_at)
SELECT community_id, seed_uuid('applied', 2 * n + half),
    seed_between((half + n % 10000000 / 1e7) / 2, :anchor - interval '30 days', :anchor)
FROM generate_series(0, 1) AS half CROSS JOIN seed_members;

-- stage 5: counts = rank_counts, tier_counts, community_counts, community_days, badge_kinds
INSERT INTO rank_counts (community_id, ladder, level, bucket, members)
SELECT community_id, ladder, level, score >> (5 * level), sum(members)
FROM (
    SELECT community_id, 1 AS ladder, conviction AS score, count(*) AS members FROM scores WHERE visible GROUP BY 1, 3
    UNION ALL
    SELECT community_id, 2, badge_count, count(*) FROM profiles WHERE visible GROUP BY 1, 3
) AS counted
CROSS JOIN generate_series(0, 10) AS level
GROUP BY 1, 2, 3, 4;

INSERT INTO tier_counts (community_id, tier, members)
SELECT community_id, coalesce(tier, ''), count(*) FROM profiles WHERE visible GROUP BY 1, 2;

INSERT INTO community_counts (community_id, members, conviction_total, badges)
SELECT community_id, count(*), sum(s.conviction), sum(p.badge_count)
FROM profiles AS p JOIN scores AS s USING (community_id, profile_id) WHERE p.visible GROUP BY 1;

CREATE TEMPORARY TABLE visible_badges AS
SELECT b.community_id, b.kind, utc_day(b.awarded_at) AS day, count(*) AS held, min(b.awarded_at) AS first_awarded_at
FROM badges AS b JOIN profiles AS p USING (community_id, profile_id)
WHERE b.revoked_at IS NULL AND p.visible GROUP BY 1, 2, 3;

INSERT INTO community_days (community_id, day, active, joined, awarded, promoted)
SELECT community_id, day, sum(active), sum(joined), sum(awarded), sum(promoted)
FROM (
    SELECT community_id, utc_day(last_active_at) AS day, count(*) AS active, 0 AS joined, 0 AS awarded, 0 AS promoted
    FROM scores WHERE visible AND last_active_at IS NOT NULL GROUP BY 1, 2
    UNION ALL
    SELECT community_id, utc_day(joined_at), 0, count(*), 0, 0 FROM profiles WHERE visible GROUP BY 1, 2
    UNION ALL
    SELECT community_id, day, 0, 0, sum(held), 0 FROM visible_badges GROUP BY 1, 2
    UNION ALL
    SELECT community_id, utc_day(at), 0, 0, 0, count(*) FROM tier_changes WHERE visible AND promotion GROUP BY 1, 2
) AS happened
GROUP BY 1, 2;

INSERT INTO badge_kinds (community_id, kind, holders, first_awarded_at)
SELECT b.community_id, b.kind, coalesce(max(v.holders), 0), min(b.awarded_at)
FROM badges AS b
LEFT JOIN (SELECT community_id, kind, sum(held) AS holders FROM visible_badges GROUP BY 1, 2) AS v
    USING (community_id, kind)
GROUP BY 1, 2;
DROP TABLE visible_badges;

-- stage 6: away with the scaffolding
DROP TABLE seed_members, seed_communities;
DROP FUNCTION seed_between, seed_pick, seed_uuid, seed_share;
