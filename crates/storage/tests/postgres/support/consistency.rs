//! What must hold after any change: every kept number and every derived row is what plain counting comes to.

use std::collections::HashMap;

use muster_domain::{Conviction, Nym, Rank, RankTier, ScoreTier, Tier, TierPolicy, UserId};
use tokio_postgres::{Client, Row};

/// Each answers the rows in which what is kept and a plain count differ.
const DIFFERENCES: [(&str, &str); 19] = [
    (
        "every row lies in its community's shard",
        "SELECT DISTINCT ROW(k.*)::text FROM (
             SELECT 'community_states' AS kept, shard, community FROM community_states
             UNION SELECT 'community_stripes', shard, community FROM community_stripes
             UNION SELECT 'community_totals', shard, community FROM community_totals
             UNION SELECT 'community_days', shard, community FROM community_days
             UNION SELECT 'members', shard, community FROM members
             UNION SELECT 'activity_adds', shard, community FROM activity_adds
             UNION SELECT 'board_entries', shard, community FROM board_entries
             UNION SELECT 'board_counts', shard, community FROM board_counts
             UNION SELECT 'directory', shard, community FROM directory
             UNION SELECT 'nym_suffixes', shard, community FROM nym_suffixes
             UNION SELECT 'badge_kinds', shard, community FROM badge_kinds
             UNION SELECT 'badge_ops', shard, community FROM badge_ops
             UNION SELECT 'tiers', shard, community FROM tiers
             UNION SELECT 'tier_counts', shard, community FROM tier_counts
             UNION SELECT 'tier_changes', shard, community FROM tier_changes
             UNION SELECT 'applied_events', shard, community FROM applied_events
             UNION SELECT 'erasures', shard, community FROM erasures
         ) AS k LEFT JOIN communities AS c USING (shard, community)
         WHERE c.community_id IS NULL",
    ),
    (
        "a community has its state, totals and stripes",
        "SELECT ROW(c.*)::text FROM communities AS c LEFT JOIN (
             SELECT shard, community FROM community_states JOIN community_totals USING (shard, community)
                 JOIN community_stripes USING (shard, community)
             GROUP BY 1, 2 HAVING count(*) = 4
         ) AS k USING (shard, community) WHERE k.shard IS NULL",
    ),
    (
        "board_entries",
        "WITH counted AS (
             SELECT shard, 1 AS board, community, -conviction AS negated_score, joined_at, member,
                 NULL::smallint AS tier
             FROM members WHERE NOT has_left AND NOT hidden AND erased_at IS NULL
             UNION ALL
             SELECT shard, 2, community, -activity, joined_at, member, NULL
             FROM members WHERE NOT has_left AND NOT hidden AND erased_at IS NULL AND activity > 0
             UNION ALL
             SELECT shard, 3, community, -badge_count, joined_at, member, tier
             FROM members WHERE NOT has_left AND NOT hidden AND erased_at IS NULL
         ), kept AS (
             SELECT shard, board::integer, community, negated_score, joined_at, member, tier FROM board_entries
         )
         (SELECT 'kept ' || ROW(k.*)::text FROM (TABLE kept EXCEPT TABLE counted) AS k)
         UNION ALL
         (SELECT 'counted ' || ROW(c.*)::text FROM (TABLE counted EXCEPT TABLE kept) AS c)",
    ),
    (
        "board_counts",
        "WITH counted AS (
             SELECT s.shard, s.board, s.community, level, s.score >> (5 * level) AS bucket, count(*) AS members
             FROM (
                 SELECT shard, 1 AS board, community, conviction AS score FROM members WHERE visible
                 UNION ALL SELECT shard, 2, community, activity FROM members WHERE visible AND activity > 0
                 UNION ALL SELECT shard, 3, community, badge_count FROM members WHERE visible
             ) AS s CROSS JOIN generate_series(0, 10) AS level
             WHERE level IN (0, 10) OR (s.score >> (5 * level)) & 31 <> 0
             GROUP BY 1, 2, 3, 4, 5
         )
         SELECT ROW(k.*, c.*)::text FROM board_counts AS k
         FULL JOIN counted AS c USING (shard, board, community, level, bucket)
         WHERE k.members IS DISTINCT FROM c.members",
    ),
    (
        "directory",
        "SELECT ROW(k.*, m.shard, m.member, m.tier, m.joined_at, m.nym_key)::text FROM directory AS k
         FULL JOIN (SELECT * FROM members WHERE visible) AS m USING (shard, community, member)
         WHERE (k.tier, k.joined_at, k.nym_key) IS DISTINCT FROM (m.tier, m.joined_at, m.nym_key)
             OR k.shard IS NULL OR m.shard IS NULL",
    ),
    (
        "nym_suffixes",
        "WITH counted AS (
             SELECT m.shard, m.community, m.member, substr(m.nym_key, at) AS suffix,
                 CASE WHEN at = 1 THEN 0
                      WHEN translate(substr(m.nym_key, at - 1, 1), E' \\t!\"#$%&''()*+,-./:;<=>?@[\\\\]^_`{|}~', '') = ''
                      THEN 1 ELSE 2 END AS class
             FROM members AS m CROSS JOIN LATERAL generate_series(1, least(length(m.nym_key), 32)) AS at
             WHERE m.visible
         ), kept AS (
             SELECT shard, community, member, suffix, class::integer FROM nym_suffixes
             UNION ALL SELECT shard, community, member, substr(suffix, 1 + letter), 2
             FROM nym_suffixes CROSS JOIN LATERAL generate_series(1, inside) AS letter
         )
         (SELECT 'kept ' || ROW(k.*)::text FROM (TABLE kept EXCEPT ALL TABLE counted) AS k)
         UNION ALL
         (SELECT 'counted ' || ROW(c.*)::text FROM (TABLE counted EXCEPT ALL TABLE kept) AS c)",
    ),
    (
        "tier_changes.visible",
        "SELECT ROW(c.*)::text FROM tier_changes AS c LEFT JOIN members AS m USING (shard, community, member)
         WHERE c.visible IS DISTINCT FROM m.visible",
    ),
    (
        "tier_counts",
        "SELECT ROW(k.*, c.*)::text FROM tier_counts AS k FULL JOIN (
             SELECT shard, community, tier, count(*) AS members FROM members
             WHERE visible AND tier IS NOT NULL GROUP BY 1, 2, 3
         ) AS c USING (shard, community, tier)
         WHERE coalesce(k.members, 0) <> coalesce(c.members, 0)",
    ),
    (
        "community_totals",
        "SELECT ROW(k.*, c.*)::text FROM community_totals AS k FULL JOIN (
             SELECT m.shard, m.community, count(*) AS members, sum(m.conviction) AS conviction,
                 sum((SELECT count(*) FROM badge_ops AS o
                     WHERE o.shard = m.shard AND o.community = m.community AND o.member = m.member
                         AND o.is_badge AND o.revoked_at IS NULL)) AS badges
             FROM members AS m WHERE m.visible GROUP BY 1, 2
         ) AS c USING (shard, community)
         WHERE (coalesce(k.members, 0), coalesce(k.badges, 0), coalesce(k.conviction, 0))
             <> (coalesce(c.members, 0), coalesce(c.badges, 0), coalesce(c.conviction, 0))",
    ),
    (
        "community_days",
        "SELECT ROW(k.*, c.*)::text FROM community_days AS k FULL JOIN (
             SELECT shard, community, (at AT TIME ZONE 'UTC')::date AS day, sum(active) AS active, sum(joined) AS joined,
                 sum(awarded) AS awarded, sum(promoted) AS promoted
             FROM (
                 SELECT shard, community, last_active_at AS at, 1 AS active, 0 AS joined, 0 AS awarded, 0 AS promoted
                 FROM members WHERE visible AND last_active_at IS NOT NULL
                 UNION ALL SELECT shard, community, joined_at, 0, 1, 0, 0 FROM members WHERE visible
                 UNION ALL SELECT shard, community, o.at, 0, 0, 1, 0
                     FROM badge_ops AS o JOIN members AS m USING (shard, community, member)
                     WHERE m.visible AND o.is_badge AND o.revoked_at IS NULL
                 UNION ALL SELECT shard, community, c.at, 0, 0, 0, 1
                     FROM tier_changes AS c JOIN members AS m USING (shard, community, member)
                     WHERE m.visible AND c.promotion
             ) AS happened GROUP BY 1, 2, 3
         ) AS c USING (shard, community, day)
         WHERE (coalesce(k.active, 0), coalesce(k.joined, 0), coalesce(k.awarded, 0), coalesce(k.promoted, 0))
             <> (coalesce(c.active, 0), coalesce(c.joined, 0), coalesce(c.awarded, 0), coalesce(c.promoted, 0))",
    ),
    (
        "members.badge_count",
        "SELECT ROW(m.*)::text FROM members AS m WHERE m.badge_count <>
             (SELECT count(*) FROM badge_ops AS o
              WHERE o.shard = m.shard AND o.community = m.community AND o.member = m.member
                  AND o.is_badge AND o.revoked_at IS NULL)",
    ),
    (
        "badge_kinds.holders",
        "SELECT ROW(k.*, c.*)::text FROM badge_kinds AS k FULL JOIN (
             SELECT shard, community, kind, count(*) FILTER (WHERE m.visible AND o.is_badge AND o.revoked_at IS NULL)
                 AS holders
             FROM badge_ops AS o JOIN members AS m USING (shard, community, member) GROUP BY 1, 2, 3
         ) AS c USING (shard, community, kind)
         WHERE k.shard IS NULL OR k.holders <> coalesce(c.holders, 0)",
    ),
    (
        // A kind stays known from its first award although the person who had it was erased with it.
        "badge_kinds.first_awarded_at",
        "SELECT ROW(k.*, c.first)::text FROM badge_kinds AS k
         JOIN (SELECT shard, community, kind, min(at) AS first FROM badge_ops WHERE award GROUP BY 1, 2, 3) AS c
             USING (shard, community, kind)
         WHERE k.first_awarded_at > c.first OR k.first_awarded_at < c.first AND NOT EXISTS (
             SELECT FROM members AS m
             WHERE m.shard = k.shard AND m.community = k.community AND m.erased_at IS NOT NULL)",
    ),
    (
        "badges are what their operations come to",
        "SELECT ROW(o.*, f.*)::text FROM (
             SELECT *, award AND NOT coalesce(lag(award) OVER w, false) AS has_effect
             FROM badge_ops WINDOW w AS (PARTITION BY shard, community, member, kind ORDER BY at, op_id)
         ) AS o
         LEFT JOIN LATERAL (
             SELECT r.at, r.by, r.reason FROM badge_ops AS r
             WHERE r.shard = o.shard AND r.community = o.community AND r.member = o.member AND r.kind = o.kind
                 AND NOT r.award AND (r.at, r.op_id) > (o.at, o.op_id)
             ORDER BY r.at, r.op_id LIMIT 1
         ) AS f ON o.has_effect
         WHERE o.is_badge <> o.has_effect
             OR (o.revoked_at, o.revoked_by, o.revoke_reason) IS DISTINCT FROM (f.at, f.by, f.reason)",
    ),
    (
        "each change of tier goes on from the one before, and the last leads to the tier held",
        "SELECT ROW(c.*)::text FROM (
             SELECT c.*, lead(c.from_tier, 1, m.tier) OVER w AS then, lead(c.at, 1, 'infinity') OVER w AS then_at
             FROM tier_changes AS c JOIN members AS m USING (shard, community, member)
             WINDOW w AS (PARTITION BY c.shard, c.community, c.member ORDER BY c.change)
         ) AS c
         WHERE c.to_tier IS DISTINCT FROM c.then OR c.from_tier IS NOT DISTINCT FROM c.to_tier OR c.then_at < c.at",
    ),
    (
        "tiers that members and their history name",
        "SELECT ROW(n.*)::text FROM (
             SELECT shard, community, tier FROM members
             UNION SELECT shard, community, from_tier FROM tier_changes
             UNION SELECT shard, community, to_tier FROM tier_changes
             UNION SELECT shard, community, tier FROM tier_counts
         ) AS n LEFT JOIN tiers AS t USING (shard, community, tier)
         WHERE n.tier IS NOT NULL AND t.shard IS NULL",
    ),
    (
        "tiers.place",
        "SELECT ROW(t.*)::text FROM (
             SELECT *, row_number() OVER (PARTITION BY shard, community
                 ORDER BY last_rank NULLS LAST, from_conviction DESC) - 1 AS counted
             FROM tiers WHERE place IS NOT NULL
         ) AS t WHERE t.place <> t.counted",
    ),
    (
        "what was added and what follows from it is of a known member",
        "SELECT ROW(k.*)::text FROM (
             SELECT shard, community, member FROM activity_adds
             UNION SELECT shard, community, member FROM badge_ops
             UNION SELECT shard, community, member FROM tier_changes
         ) AS k LEFT JOIN members AS m USING (shard, community, member)
         WHERE m.user_id IS NULL",
    ),
    (
        "an erased member's row is empty",
        "SELECT ROW(m.*)::text FROM members AS m WHERE erased_at IS NOT NULL
             AND (conviction, activity, badge_count, tier) IS DISTINCT FROM (0, 0, 0, NULL)
             OR erased_at IS NOT NULL AND coalesce(wallet, username, nick, nullif(nym_key, '')) IS NOT NULL",
    ),
];

/// Checks all of it, in every community of the database.
pub(crate) async fn check(client: &Client) {
    for (what, sql) in DIFFERENCES {
        let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let differing: Vec<String> = rows.iter().take(5).map(|row| row.get(0)).collect();
        assert!(rows.is_empty(), "{what}: {} rows differ, such as {differing:#?}", rows.len());
    }
    check_names(client).await;
    check_tiers(client).await;
}

/// The folded name is that of the nickname, else the user name, else the person's id.
async fn check_names(client: &Client) {
    let sql = "SELECT user_id, coalesce(nick, username), nym_key FROM members WHERE erased_at IS NULL";
    for row in client.query(sql, &[]).await.unwrap() {
        let (user, name): (String, Option<String>) = (row.get(0), row.get(1));
        let user = UserId::parse(user).unwrap();
        let nym = name.map_or_else(|| Nym::of_user(&user), |name| Nym::parse(name).unwrap());
        assert_eq!(row.get::<_, String>(2), nym.key().as_str(), "members.nym_key of {user:?}");
    }
}

/// Every visible member holds the tier that their score and rank come to by the policy.
async fn check_tiers(client: &Client) {
    let communities = "SELECT shard, community FROM communities";
    for community in client.query(communities, &[]).await.unwrap() {
        let tenant: (i16, i32) = (community.get(0), community.get(1));
        let policy = stored_policy(client, tenant).await;
        let rows = client
            .query(
                "SELECT m.member, t.name, m.conviction, m.tier_assigned,
                     rank() OVER (ORDER BY m.conviction DESC), count(*) OVER (PARTITION BY m.conviction)
                 FROM members AS m LEFT JOIN tiers AS t USING (shard, community, tier)
                 WHERE shard = $1 AND community = $2 AND m.visible",
                &[&tenant.0, &tenant.1],
            )
            .await
            .unwrap();
        let members = i64::try_from(rows.len()).unwrap();
        let mut thresholds: HashMap<String, Option<i64>> = HashMap::new();
        let ranked = |row: &Row| -> (i64, i64) { (row.get(4), row.get(5)) };
        for tier in policy.rank_tiers() {
            let last = i64::try_from(tier.last.get()).unwrap();
            // The score of the member who stands at the tier's last rank, and how many share it or stand above.
            let edge = rows.iter().find(|row| {
                let (rank, ties) = ranked(row);
                rank <= last && last < rank + ties
            });
            let threshold = edge.map(|row| {
                let (rank, ties) = ranked(row);
                let score: i64 = row.get(2);
                if rank + ties - 1 > last.max(1000) { score + 1 } else { score }
            });
            assert!(members < last || edge.is_some());
            thresholds.insert(tier.tier.as_str().to_owned(), threshold);
        }
        let stored = client
            .query(
                "SELECT name, threshold FROM tiers WHERE shard = $1 AND community = $2 AND last_rank IS NOT NULL",
                &[&tenant.0, &tenant.1],
            )
            .await
            .unwrap();
        let stored: HashMap<String, Option<i64>> =
            stored.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(stored, thresholds, "tiers.threshold");
        for row in rows {
            let conviction = Conviction::clamp(row.get::<_, i64>(2));
            let rank = Rank::below(u64::try_from(row.get::<_, i64>(4) - 1).unwrap());
            let by_threshold = policy
                .rank_tiers()
                .iter()
                .find(|tier| thresholds[tier.tier.as_str()].is_none_or(|from| from <= conviction.get()))
                .map(|tier| &tier.tier);
            let expected = if members <= 1000 {
                policy.tier(conviction, rank)
            } else {
                by_threshold.or_else(|| policy.score_tier(conviction))
            };
            let held: Option<String> = row.get(1);
            let member: i64 = row.get(0);
            assert_eq!(
                held.as_deref(),
                expected.map(Tier::as_str),
                "{member} of {tenant:?} has {conviction} and rank {rank}"
            );
            assert!(row.get::<_, bool>(3), "{member} of {tenant:?} was never assigned a tier");
        }
    }
}

async fn stored_policy(client: &Client, (shard, community): (i16, i32)) -> TierPolicy {
    let rows = client
        .query(
            "SELECT name, from_conviction, last_rank FROM tiers
             WHERE shard = $1 AND community = $2 AND place IS NOT NULL ORDER BY place DESC",
            &[&shard, &community],
        )
        .await
        .unwrap();
    let (mut scores, mut ranks) = (Vec::new(), Vec::new());
    for row in rows {
        let tier = Tier::parse(row.get::<_, String>(0)).unwrap();
        match (row.get::<_, Option<i64>>(1), row.get::<_, Option<i32>>(2)) {
            (Some(from), None) => scores.push(ScoreTier { tier, from: Conviction::clamp(from) }),
            (None, Some(last)) => {
                ranks.push(RankTier { tier, last: Rank::below(u64::try_from(last - 1).unwrap()) })
            }
            both => panic!("{tier} is reached by {both:?}"),
        }
    }
    ranks.reverse();
    TierPolicy::new(scores, ranks).unwrap()
}
