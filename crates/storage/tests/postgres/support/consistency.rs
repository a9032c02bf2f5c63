//! What must hold after any change: every kept number is what plain counting comes to.

use std::collections::HashMap;

use muster_domain::{Conviction, Rank, RankTier, ScoreTier, Tier, TierPolicy};
use tokio_postgres::Client;
use uuid::Uuid;

/// Each answers the rows in which a kept number and a plain count differ.
const DIFFERENCES: [(&str, &str); 17] = [
    (
        "rank_counts",
        "WITH counted AS (
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
         WHERE k.members IS DISTINCT FROM c.members",
    ),
    (
        "members_above conviction",
        "SELECT ROW(s.*)::text FROM scores AS s WHERE s.visible AND members_above(s.community_id, 1, s.conviction) <>
             (SELECT count(*) FROM scores AS o
              WHERE o.community_id = s.community_id AND o.visible AND o.conviction > s.conviction)",
    ),
    (
        "members_above badges",
        "SELECT ROW(p.*)::text FROM profiles AS p WHERE p.visible AND members_above(p.community_id, 2, p.badge_count) <>
             (SELECT count(*) FROM profiles AS o
              WHERE o.community_id = p.community_id AND o.visible AND o.badge_count > p.badge_count)",
    ),
    (
        "members_at",
        "SELECT ROW(s.*)::text FROM scores AS s WHERE s.visible AND members_at(s.community_id, 1, s.conviction) <>
             (SELECT count(*) FROM scores AS o
              WHERE o.community_id = s.community_id AND o.visible AND o.conviction = s.conviction)",
    ),
    (
        "scores.visible",
        "SELECT ROW(p.*, s.*)::text FROM profiles AS p FULL JOIN scores AS s USING (community_id, profile_id)
         WHERE s.visible IS DISTINCT FROM (NOT p.has_left AND NOT p.hidden AND p.erased_at IS NULL)
             OR p.visible IS DISTINCT FROM s.visible",
    ),
    (
        "tier_changes.visible",
        "SELECT ROW(c.*)::text FROM tier_changes AS c JOIN profiles AS p USING (community_id, profile_id)
         WHERE c.visible <> p.visible",
    ),
    (
        "tier_counts",
        "SELECT ROW(k.*, c.*)::text FROM tier_counts AS k FULL JOIN (
             SELECT community_id, coalesce(tier, '') AS tier, count(*) AS members FROM profiles WHERE visible GROUP BY 1, 2
         ) AS c USING (community_id, tier)
         WHERE coalesce(k.members, 0) <> coalesce(c.members, 0)",
    ),
    (
        "community_counts.members",
        "SELECT ROW(k.*)::text FROM community_counts AS k WHERE k.members <>
             (SELECT count(*) FROM profiles AS p WHERE p.community_id = k.community_id AND p.visible)",
    ),
    (
        "community_counts.conviction_total",
        "SELECT ROW(k.*)::text FROM community_counts AS k WHERE k.conviction_total <>
             (SELECT coalesce(sum(s.conviction), 0) FROM scores AS s WHERE s.community_id = k.community_id AND s.visible)",
    ),
    (
        "community_counts.badges",
        "SELECT ROW(k.*)::text FROM community_counts AS k WHERE k.badges <>
             (SELECT count(*) FROM badges AS b JOIN profiles AS p USING (community_id, profile_id)
              WHERE b.community_id = k.community_id AND p.visible AND b.revoked_at IS NULL)",
    ),
    (
        "community_counts of each community",
        "SELECT c.community_id::text FROM communities AS c
         WHERE NOT EXISTS (SELECT FROM community_counts AS k WHERE k.community_id = c.community_id)",
    ),
    (
        "community_days",
        "SELECT ROW(k.*, c.*)::text FROM community_days AS k FULL JOIN (
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
             <> (coalesce(c.active, 0), coalesce(c.joined, 0), coalesce(c.awarded, 0), coalesce(c.promoted, 0))",
    ),
    (
        "profiles.badge_count",
        "SELECT ROW(p.*)::text FROM profiles AS p WHERE p.badge_count <>
             (SELECT count(*) FROM badges AS b
              WHERE b.community_id = p.community_id AND b.profile_id = p.profile_id AND b.revoked_at IS NULL)",
    ),
    (
        "badge_kinds.holders",
        "SELECT ROW(k.*, c.*)::text FROM badge_kinds AS k FULL JOIN (
             SELECT community_id, kind, count(*) AS holders FROM badges JOIN profiles USING (community_id, profile_id)
             WHERE visible AND revoked_at IS NULL GROUP BY 1, 2
         ) AS c USING (community_id, kind)
         WHERE coalesce(k.holders, 0) <> coalesce(c.holders, 0)",
    ),
    (
        "nym_tails",
        "WITH counted AS (
             SELECT p.community_id, p.profile_id, substr(p.nym_key, at) AS tail,
                 CASE WHEN at = 1 THEN 0
                      WHEN translate(substr(p.nym_key, at - 1, 1), E' \\t!\"#$%&''()*+,-./:;<=>?@[\\\\]^_`{|}~', '') = ''
                      THEN 1 ELSE 2 END AS class
             FROM profiles AS p CROSS JOIN LATERAL generate_series(1, least(length(p.nym_key), 32)) AS at
             WHERE p.visible
         )
         (SELECT ROW(community_id, profile_id, tail, class::integer)::text FROM nym_tails
          EXCEPT SELECT ROW(community_id, profile_id, tail, class)::text FROM counted)
         UNION ALL
         (SELECT ROW(community_id, profile_id, tail, class)::text FROM counted
          EXCEPT SELECT ROW(community_id, profile_id, tail, class::integer)::text FROM nym_tails)",
    ),
    (
        "badges agree with their operations",
        "SELECT ROW(o.*)::text FROM badge_ops AS o
         WHERE o.award AND NOT EXISTS (
             SELECT FROM badges AS b WHERE b.community_id = o.community_id AND b.profile_id = o.profile_id
                 AND b.kind = o.kind AND b.awarded_at <= o.at AND (b.revoked_at IS NULL OR b.revoked_at >= o.at))",
    ),
    (
        "each change of tier goes on from the one before, and the last leads to the tier held",
        "SELECT ROW(c.*)::text FROM (
             SELECT c.*, lead(c.from_tier, 1, p.tier) OVER w AS then, lead(c.at, 1, 'infinity') OVER w AS then_at
             FROM tier_changes AS c JOIN profiles AS p USING (community_id, profile_id)
             WINDOW w AS (PARTITION BY c.community_id, c.profile_id ORDER BY c.change_id)
         ) AS c
         WHERE c.to_tier IS DISTINCT FROM c.then OR c.from_tier IS NOT DISTINCT FROM c.to_tier OR c.then_at < c.at",
    ),
];

/// Checks all of it, in every community of the database.
pub(crate) async fn check(client: &Client) {
    differences(client, |_| true).await;
    check_tiers(client).await;
}

/// Checks all but what compares every member with every other, which takes too long in a large community.
pub(crate) async fn check_large(client: &Client) {
    differences(client, |what| !what.starts_with("members_")).await;
    check_tiers(client).await;
}

async fn differences(client: &Client, wanted: impl Fn(&str) -> bool) {
    for (what, sql) in DIFFERENCES.into_iter().filter(|(what, _)| wanted(what)) {
        let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let differing: Vec<String> = rows.iter().take(5).map(|row| row.get(0)).collect();
        assert!(rows.is_empty(), "{what}: {} rows differ, such as {differing:#?}", rows.len());
    }
}

/// Every visible profile holds the tier that its score and rank come to by the policy.
async fn check_tiers(client: &Client) {
    for community in client.query("SELECT community_id FROM communities", &[]).await.unwrap() {
        let community: Uuid = community.get(0);
        let policy = stored_policy(client, community).await;
        let rows = client
            .query(
                "SELECT p.profile_id, p.tier, s.conviction, p.tier_given,
                     rank() OVER (ORDER BY s.conviction DESC), count(*) OVER (PARTITION BY s.conviction)
                 FROM profiles AS p JOIN scores AS s USING (community_id, profile_id)
                 WHERE community_id = $1 AND p.visible",
                &[&community],
            )
            .await
            .unwrap();
        let members = i64::try_from(rows.len()).unwrap();
        let mut cuts: HashMap<String, i64> = HashMap::new();
        let ranked = |row: &tokio_postgres::Row| -> (i64, i64) { (row.get(4), row.get(5)) };
        for tier in policy.rank_tiers() {
            let last = i64::try_from(tier.last.get()).unwrap();
            // The score of the member who stands at the tier's last rank, and how many share it or stand above.
            let edge = rows.iter().find(|row| {
                let (rank, ties) = ranked(row);
                rank <= last && last < rank + ties
            });
            let cut = match edge {
                None => i64::MIN,
                Some(row) => {
                    let (rank, ties) = ranked(row);
                    let score: i64 = row.get(2);
                    if rank + ties - 1 > last.max(1000) { score + 1 } else { score }
                }
            };
            assert!(members < last || edge.is_some());
            cuts.insert(tier.tier.as_str().to_owned(), cut);
        }
        let stored_cuts = client
            .query(
                "SELECT tier, cut FROM tier_policies WHERE community_id = $1 AND last_rank IS NOT NULL",
                &[&community],
            )
            .await
            .unwrap();
        let stored: HashMap<String, i64> = stored_cuts.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(stored, cuts, "tier_policies.cut");
        for row in rows {
            let conviction = Conviction::clamp(row.get::<_, i64>(2));
            let rank = Rank::below(u64::try_from(row.get::<_, i64>(4) - 1).unwrap());
            let by_cut = policy
                .rank_tiers()
                .iter()
                .find(|tier| cuts[tier.tier.as_str()] <= conviction.get())
                .map(|tier| &tier.tier);
            let expected = if members <= 1000 {
                policy.tier(conviction, rank)
            } else {
                by_cut.or_else(|| policy.score_tier(conviction))
            };
            let held: Option<String> = row.get(1);
            let profile: Uuid = row.get(0);
            assert_eq!(
                held.as_deref(),
                expected.map(Tier::as_str),
                "{profile} has {conviction} and rank {rank}"
            );
            assert!(row.get::<_, bool>(3), "{profile} was never given a tier");
        }
    }
}

async fn stored_policy(client: &Client, community: Uuid) -> TierPolicy {
    let rows = client
        .query(
            "SELECT tier, from_conviction, last_rank FROM tier_policies WHERE community_id = $1 ORDER BY place DESC",
            &[&community],
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
