//! A community in numbers, read from kept counts.

use std::collections::HashMap;
use std::sync::Arc;

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, SmallInt};
use muster_domain::{Stats, Tier, TierCount};

use crate::community::Community;
use crate::error::Error;

#[derive(QueryableByName)]
struct StatsRow {
    #[diesel(sql_type = BigInt)]
    members: i64,
    #[diesel(sql_type = BigInt)]
    conviction: i64,
    #[diesel(sql_type = BigInt)]
    badges: i64,
    #[diesel(sql_type = Array<SmallInt>)]
    tiers: Vec<i16>,
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
                 greatest(-9007199254740991, least(9007199254740991, coalesce(c.conviction, 0)))::bigint AS conviction,
                 t.tiers, t.tier_members, d.active, d.joined, d.promoted, d.awarded
             FROM (VALUES (true)) AS always
             LEFT JOIN LATERAL (SELECT c.members, c.badges, c.conviction FROM community_totals AS c
                 WHERE c.shard = $1 AND c.community = $2 LIMIT 1) AS c ON true
             CROSS JOIN LATERAL (
                 SELECT coalesce(array_agg(k.tier), '{}') AS tiers, coalesce(array_agg(k.members), '{}') AS tier_members
                 FROM tier_counts AS k WHERE k.shard = $1 AND k.community = $2 AND k.members <> 0
             ) AS t
             CROSS JOIN LATERAL (
                 SELECT coalesce(sum(k.active), 0)::bigint AS active, coalesce(sum(k.joined), 0)::bigint AS joined,
                     coalesce(sum(k.promoted), 0)::bigint AS promoted, coalesce(sum(k.awarded), 0)::bigint AS awarded
                 FROM community_days AS k
                 WHERE k.shard = $1 AND k.community = $2 AND k.day > (now() AT TIME ZONE 'UTC')::date - 7
                     AND k.day <= (now() AT TIME ZONE 'UTC')::date
             ) AS d",
        );
        let row: StatsRow = self
            .store
            .optional("community_stats", statement)
            .await?
            .ok_or_else(|| Error::defect("one row was asked for, and none came"))?;
        let count = |number: i64| u64::try_from(number).map_err(Error::defect);
        // The policy that is kept may be older than the counts.
        let policy = match self.policy.names_all(row.tiers.iter().copied().map(Some)) {
            true => Arc::clone(&self.policy),
            false => self.newest_policy().await?,
        };
        let counted: HashMap<i16, i64> = row.tiers.iter().copied().zip(row.tier_members).collect();
        let members_of = |tier: &Tier| {
            let counted = policy.number(tier).and_then(|number| counted.get(&number));
            count(counted.copied().unwrap_or_default())
        };
        let mut tiers = policy
            .tiers
            .highest_first()
            .map(|tier| Ok(TierCount { tier: Some(tier.clone()), members: members_of(tier)? }))
            .collect::<Result<Vec<_>, Error>>()?;
        // Who holds a tier of a policy before has not lost it yet, and is not of those without one.
        let without = counted.values().fold(row.members, |rest, members| rest.saturating_sub(*members));
        tiers.push(TierCount { tier: None, members: count(without)? });
        Ok(Stats {
            members: count(row.members)?,
            tiers,
            conviction_total: row.conviction,
            badges: count(row.badges)?,
            active_this_week: count(row.active)?,
            new_this_week: count(row.joined)?,
            promotions_this_week: count(row.promoted)?,
            badges_this_week: count(row.awarded)?,
        })
    }
}
