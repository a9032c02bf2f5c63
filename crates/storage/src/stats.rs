//! A community in numbers, read from kept counts.

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Text};
use muster_domain::{Stats, Tier, TierCount};

use crate::Error;
use crate::community::Community;
use crate::tier::counted_tier;

#[derive(QueryableByName)]
struct StatsRow {
    #[diesel(sql_type = BigInt)]
    members: i64,
    #[diesel(sql_type = BigInt)]
    conviction_total: i64,
    #[diesel(sql_type = BigInt)]
    badges: i64,
    #[diesel(sql_type = Array<Text>)]
    tiers: Vec<String>,
    #[diesel(sql_type = Array<BigInt>)]
    tier_members: Vec<i64>,
    #[diesel(sql_type = BigInt)]
    active: i64,
    #[diesel(sql_type = BigInt)]
    joined: i64,
    #[diesel(sql_type = BigInt)]
    promoted: i64,
    #[diesel(sql_type = BigInt)]
    awarded: i64,
}

impl Community {
    /// The community in numbers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn stats(&self) -> Result<Stats, Error> {
        let statement = self.statement(
            "SELECT coalesce(c.members, 0) AS members, coalesce(c.badges, 0) AS badges,
                 greatest(-9007199254740991, least(9007199254740991, coalesce(c.conviction_total, 0)))::bigint
                     AS conviction_total,
                 t.tiers, t.tier_members, d.active, d.joined, d.promoted, d.awarded
             FROM (VALUES (true)) AS always
             LEFT JOIN community_counts AS c ON c.community_id = $1
             CROSS JOIN LATERAL (
                 SELECT coalesce(array_agg(k.tier), '{}') AS tiers, coalesce(array_agg(k.members), '{}') AS tier_members
                 FROM tier_counts AS k WHERE k.community_id = $1 AND k.members <> 0
             ) AS t
             CROSS JOIN LATERAL (
                 SELECT coalesce(sum(k.active), 0)::bigint AS active, coalesce(sum(k.joined), 0)::bigint AS joined,
                     coalesce(sum(k.promoted), 0)::bigint AS promoted, coalesce(sum(k.awarded), 0)::bigint AS awarded
                 FROM community_days AS k
                 WHERE k.community_id = $1 AND k.day > utc_day(now()) - 7 AND k.day <= utc_day(now())
             ) AS d",
        );
        let row: StatsRow = self
            .store
            .optional("community_stats", statement)
            .await?
            .ok_or_else(|| Error::defect("a known community is gone"))?;
        let count = |number: i64| u64::try_from(number).map_err(Error::defect);
        let counted = row
            .tiers
            .iter()
            .zip(&row.tier_members)
            .map(|(tier, members)| Ok(TierCount { tier: counted_tier(tier)?, members: count(*members)? }))
            .collect::<Result<Vec<_>, Error>>()?;
        let members_of = |tier: Option<&Tier>| {
            counted.iter().find(|count| count.tier.as_ref() == tier).map_or(0, |count| count.members)
        };
        let policy = self.policy.tiers.highest_first();
        let mut tiers: Vec<TierCount> = policy
            .map(|tier| TierCount { tier: Some(tier.clone()), members: members_of(Some(tier)) })
            .collect();
        tiers.push(TierCount { tier: None, members: members_of(None) });
        Ok(Stats {
            members: count(row.members)?,
            tiers,
            conviction_total: row.conviction_total,
            badges: count(row.badges)?,
            active_this_week: count(row.active)?,
            new_this_week: count(row.joined)?,
            promotions_this_week: count(row.promoted)?,
            badges_this_week: count(row.awarded)?,
        })
    }
}
