//! The view of one community: every query on a tenant's rows is a method of it.

use std::sync::Arc;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, Text, Uuid as SqlUuid};
use muster_domain::{
    CommunityId, Conviction, Cursor, CursorScope, Limit, Rank, RankTier, ScoreTier, TenurePolicy, Tier,
    TierPolicy,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Missing;
use crate::statement::Statement;
use crate::{Error, Store};

/// One community. Its methods see and change this community's rows only; there is no way to name another's.
#[derive(Clone)]
pub struct Community {
    pub(crate) store: Store,
    pub(crate) id: CommunityId,
    pub(crate) policy: Arc<Policy>,
}

/// What a community has chosen for itself.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) tiers: TierPolicy,
    pub(crate) tenure: TenurePolicy,
}

impl Community {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> CommunityId {
        self.id
    }

    /// The tiers of this community.
    #[must_use]
    pub fn tier_policy(&self) -> &TierPolicy {
        &self.policy.tiers
    }

    /// A statement whose `$1` is this community.
    pub(crate) fn statement(&self, sql: &'static str) -> Statement {
        Statement::new(sql).bind::<SqlUuid, _>(self.id.get())
    }

    /// Where a list goes on: the position of the cursor, or `start` for the first page.
    pub(crate) fn position<P: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        ordering: &str,
        cursor: Option<&Cursor>,
        start: P,
    ) -> Result<P, Error> {
        let Some(cursor) = cursor else { return Ok(start) };
        let scope = CursorScope { endpoint, community: self.id, ordering };
        Ok(self.store.cursor_key().open(&scope, cursor)?)
    }

    /// The cursor that goes on behind `last`, if there is more.
    pub(crate) fn next<P: Serialize>(
        &self,
        endpoint: &'static str,
        ordering: &str,
        more: bool,
        last: Option<P>,
    ) -> Result<Option<Cursor>, Error> {
        let Some(last) = last.filter(|_| more) else { return Ok(None) };
        let scope = CursorScope { endpoint, community: self.id, ordering };
        Ok(Some(self.store.cursor_key().seal(&scope, &last)?))
    }
}

impl std::fmt::Debug for Community {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Community").field(&self.id).finish()
    }
}

/// Reads a community's policy, and with it whether there is such a community.
pub(crate) async fn policy(store: &Store, id: CommunityId) -> Result<Arc<Policy>, Error> {
    let statement = Statement::new(
        "SELECT c.tenure_member_from, c.tenure_veteran_from, c.tenure_elder_from,
             p.tier, p.from_conviction, p.last_rank
         FROM communities AS c LEFT JOIN tier_policies AS p USING (community_id)
         WHERE c.community_id = $1
         ORDER BY p.last_rank, p.from_conviction
         LIMIT $limit",
    )
    .bind::<SqlUuid, _>(id.get());
    // As many tiers as a policy can have.
    let rows: Vec<PolicyRow> = store.rows("community_policy", statement, Limit::<32>::MAX).await?;
    let first = rows.first().ok_or(Error::NotFound(Missing::Community))?;
    let days = |days: i32| u32::try_from(days).map_err(Error::defect);
    let tenure = TenurePolicy::new(
        days(first.tenure_member_from)?,
        days(first.tenure_veteran_from)?,
        days(first.tenure_elder_from)?,
    )
    .ok_or_else(|| Error::defect("a community's tenures do not ascend"))?;
    let (mut scores, mut ranks) = (Vec::new(), Vec::new());
    for row in &rows {
        let Some(tier) = &row.tier else { continue };
        let tier = Tier::parse(tier.clone()).map_err(Error::defect)?;
        match (row.from_conviction, row.last_rank) {
            (Some(from), _) => scores.push(ScoreTier { tier, from: Conviction::clamp(from) }),
            (None, Some(last)) => {
                let above = u64::try_from(last).map_err(Error::defect)?.saturating_sub(1);
                ranks.push(RankTier { tier, last: Rank::below(above) });
            }
            (None, None) => {}
        }
    }
    Ok(Arc::new(Policy { tiers: TierPolicy::new(scores, ranks)?, tenure }))
}

#[derive(QueryableByName)]
struct PolicyRow {
    #[diesel(sql_type = Integer)]
    tenure_member_from: i32,
    #[diesel(sql_type = Integer)]
    tenure_veteran_from: i32,
    #[diesel(sql_type = Integer)]
    tenure_elder_from: i32,
    #[diesel(sql_type = Nullable<Text>)]
    tier: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    from_conviction: Option<i64>,
    #[diesel(sql_type = Nullable<Integer>)]
    last_rank: Option<i32>,
}
