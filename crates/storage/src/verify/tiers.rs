//! The thresholds of rank tiers, and the tier of each member that follows from them.

use diesel::QueryableByName;
use diesel::sql_types::{Nullable, Text};
use futures_util::FutureExt;
use muster_domain::Limit;

use crate::community::Community;
use crate::error::Error;
use crate::verify::members::OfMember;
use crate::verify::report::{Compared, Verification, count};
use crate::write::lock;
use crate::write::tiers::correct_thresholds;

const THRESHOLDS: &str = "tiers.threshold";

/// Each rank tier's threshold by plain counting, as `w.threshold`: the score of the member at the last rank, or one
/// more where more than a thousand, and more than there are ranks, have it or stand above.
macro_rules! thresholds_counted {
    () => {
        "WITH scores AS MATERIALIZED (
             SELECT conviction, sum(count(*)) OVER (ORDER BY conviction DESC) AS members FROM members
             WHERE shard = $1 AND community = $2 AND visible GROUP BY conviction
         ), w AS MATERIALIZED (
             SELECT t.tier, (
                 SELECT CASE WHEN s.members > greatest(1000, t.last_rank) THEN s.conviction + 1 ELSE s.conviction END
                 FROM scores AS s WHERE s.members >= t.last_rank ORDER BY s.conviction DESC LIMIT 1
             ) AS threshold
             FROM tiers AS t WHERE t.shard = $1 AND t.community = $2 AND t.last_rank IS NOT NULL
         )"
    };
}

/// The most rank tiers there may be, well above a policy's.
type RankTiers = Limit<1000>;

pub(super) const TIERS: OfMember = OfMember {
    what: "members.tier",
    // A tier is a step of the score: what the policy makes of the lowest score of each step holds for all of it.
    compare: "WITH steps AS MATERIALIZED (
             SELECT array_agg(s.low ORDER BY s.low) AS lows, array_agg(s.tier ORDER BY s.low) AS tiers FROM (
                 SELECT b.low, coalesce((
                     SELECT t.tier FROM tiers AS t WHERE t.shard = $1 AND t.community = $2 AND t.last_rank IS NOT NULL
                         AND (t.threshold IS NULL OR t.threshold <= b.low) ORDER BY t.last_rank LIMIT 1
                 ), (
                     SELECT t.tier FROM tiers AS t WHERE t.shard = $1 AND t.community = $2
                         AND t.from_conviction <= b.low ORDER BY t.from_conviction DESC LIMIT 1
                 )) AS tier
                 FROM (SELECT '-9223372036854775808'::bigint AS low
                     UNION SELECT t.threshold FROM tiers AS t
                     WHERE t.shard = $1 AND t.community = $2 AND t.threshold IS NOT NULL
                     UNION SELECT t.from_conviction FROM tiers AS t
                     WHERE t.shard = $1 AND t.community = $2 AND t.from_conviction IS NOT NULL) AS b
             ) AS s
         ), held AS (
             SELECT m.member, m.profile_id, m.tier, steps.tiers[width_bucket(m.conviction, steps.lows)] AS counted
             FROM members AS m CROSS JOIN steps
             WHERE m.shard = $1 AND m.community = $2 AND m.member > $3 AND m.member <= $4 AND m.visible
         )
         SELECT h.member, h.profile_id::text AS key, coalesce(k.name, h.tier::text) AS kept, c.name AS counted
         FROM held AS h
         LEFT JOIN tiers AS k ON k.shard = $1 AND k.community = $2 AND k.tier = h.tier
         LEFT JOIN tiers AS c ON c.shard = $1 AND c.community = $2 AND c.tier = h.counted
         WHERE h.tier IS DISTINCT FROM h.counted LIMIT $limit",
    // Back to the tier last recorded, from which tiers are assigned again: a move that was recorded is not recorded again, and
    // one that was not is recorded and told now, also of who holds the first tier.
    repair: &["UPDATE members AS m SET tier = CASE WHEN r.found THEN r.to_tier ELSE (
            SELECT t.tier FROM tiers AS t WHERE t.shard = $1 AND t.community = $2 AND t.tier = m.tier) END
        FROM (SELECT rows.member, last.to_tier, coalesce(last.found, false) AS found FROM $rows
            LEFT JOIN LATERAL (SELECT c.to_tier, true AS found FROM tier_changes AS c
                WHERE c.shard = $1 AND c.community = $2 AND c.member = rows.member ORDER BY c.change DESC LIMIT 1) AS last
                ON true) AS r
        WHERE m.shard = $1 AND m.community = $2 AND m.member = r.member"],
    recheck_tier: true,
};

impl Community {
    pub(super) async fn verify_thresholds(
        &self,
        repair: bool,
        found: &mut Verification,
    ) -> Result<(), Error> {
        let compare = self.statement(concat!(
            thresholds_counted!(),
            " SELECT k.name AS key, k.threshold::text AS kept, w.threshold::text AS counted
              FROM tiers AS k JOIN w ON w.tier = k.tier
              WHERE k.shard = $1 AND k.community = $2 AND k.threshold IS DISTINCT FROM w.threshold LIMIT $limit"
        ));
        let rows: Vec<ThresholdDrift> = self.counted(compare, RankTiers::MAX).await?;
        let drifted = count(rows.len())?;
        for row in rows {
            found.name(THRESHOLDS, row.key, row.kept, row.counted);
        }
        if repair && drifted > 0 {
            // The boards are right by now. Who stands between the two thresholds is found with the tiers.
            let tenant = self.tenant;
            self.store
                .write("verify", move |connection| {
                    async move {
                        lock::all_members(connection, tenant).await?;
                        lock::community(connection, tenant).await?;
                        correct_thresholds(connection, tenant).await
                    }
                    .boxed()
                })
                .await?;
        }
        let rows = count(self.policy.tiers.rank_tiers().len())?;
        let repaired = if repair { drifted } else { 0 };
        found.compared.push(Compared { what: THRESHOLDS, rows, drifted, repaired });
        Ok(())
    }
}

#[derive(QueryableByName)]
struct ThresholdDrift {
    #[diesel(sql_type = Text)]
    key: String,
    #[diesel(sql_type = Nullable<Text>)]
    kept: Option<String>,
    #[diesel(sql_type = Nullable<Text>)]
    counted: Option<String>,
}
