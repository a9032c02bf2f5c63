//! The view of one community: every query on a tenant's rows is a method of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diesel::QueryableByName;
use diesel::sql_types::{Integer, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::future::BoxFuture;
use muster_domain::{
    CommunityId, Conviction, Cursor, CursorScope, Limit, PageLimit, Rank, RankTier, ScoreTier, TenurePolicy,
    Tier, TierPolicy, TraceParent,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::error::{Error, Missing};
use crate::policy::Policy;
use crate::schema::{communities, tiers};
use crate::sql::statement::Statement;
use crate::store::Store;
use crate::tenant::Tenant;
use crate::write::change::MemberChange;

/// One community. Its methods see and change this community's rows only; there is no way to name another's.
#[derive(Clone)]
pub struct Community {
    pub(crate) store: Store,
    pub(crate) id: CommunityId,
    pub(crate) tenant: Tenant,
    pub(crate) policy: Arc<Policy>,
    pub(crate) traceparent: Option<TraceParent>,
}

impl Store {
    /// The view of one community.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none of this id.
    pub async fn community(&self, id: CommunityId) -> Result<Community, Error> {
        let tenant = self.tenant(id).await?.ok_or(Error::NotFound(Missing::Community))?;
        let store = self.in_shard(tenant.shard);
        let policy = self.policy(id, policy(&store, id, tenant)).await?;
        Ok(Community { store, id, tenant, policy, traceparent: None })
    }

    /// A page of the ids of all communities, in their order, behind `after`.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is.
    pub async fn community_ids(
        &self,
        limit: PageLimit,
        after: Option<CommunityId>,
    ) -> Result<Vec<CommunityId>, Error> {
        let statement = Statement::shared(
            "SELECT community_id FROM communities WHERE community_id > $1 ORDER BY community_id LIMIT $limit",
        )
        .bind::<SqlUuid, _>(after.map_or(Uuid::nil(), CommunityId::get));
        let rows: Vec<IdRow> = self.rows("community_ids", statement, limit).await?;
        Ok(rows.into_iter().map(|row| row.community_id.into()).collect())
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = communities)]
struct IdRow {
    community_id: Uuid,
}

impl Community {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> CommunityId {
        self.id
    }

    /// The same view, read from the standby: it may be behind by the bound that is configured. `None` while there is no standby
    /// that is fit for it. What it fails to answer, the view of the primary may.
    #[must_use]
    pub fn on_standby(&self) -> Option<Self> {
        Some(Self { store: self.store.on_standby()?, ..self.clone() })
    }

    /// The same view, whose changes belong to this trace.
    #[must_use]
    pub fn in_trace(mut self, traceparent: Option<TraceParent>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// The tiers of this community.
    #[must_use]
    pub fn tier_policy(&self) -> &TierPolicy {
        &self.policy.tiers
    }

    /// Runs a write of this community.
    pub(crate) async fn write<T, F>(&self, query: &'static str, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut AsyncPgConnection) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        let done = self.store.write(query, work).await?;
        self.store.outbox_hints().wrote(self.tenant.shard);
        Ok(done)
    }

    /// A change of a member of this community, in the view's trace.
    pub(crate) fn change(&self) -> MemberChange {
        MemberChange { traceparent: self.traceparent.clone(), ..MemberChange::default() }
    }

    /// A statement on this community, which is `$1` and `$2`.
    pub(crate) fn statement(&self, sql: &'static str) -> Statement {
        Statement::in_community(self.tenant, sql)
    }

    /// The policy that names all of these tiers, which members have: the one at hand, or the newest. However lately that at hand
    /// was read, it was before a row with a tier that it does not know.
    pub(crate) async fn policy_of(
        &self,
        tiers: impl IntoIterator<Item = Option<i16>> + Clone,
    ) -> Result<Arc<Policy>, Error> {
        if self.policy.names_all(tiers.clone()) {
            return Ok(Arc::clone(&self.policy));
        }
        let newest = self.newest_policy().await?;
        if newest.names_all(tiers) { Ok(newest) } else { Err(Error::defect("a tier has no name")) }
    }

    /// The number of a tier, if the community has ever had it.
    pub(crate) async fn tier_number(&self, tier: &Tier) -> Result<Option<i16>, Error> {
        match self.policy.number(tier) {
            Some(number) => Ok(Some(number)),
            // Whoever asks for tiers that never were costs no more than one look a second.
            None if self.policy.read_at.elapsed() < Duration::from_secs(1) => Ok(None),
            None => Ok(self.newest_policy().await?.number(tier)),
        }
    }

    /// The policy as it is now.
    pub(crate) async fn newest_policy(&self) -> Result<Arc<Policy>, Error> {
        // Views of the primary get it as well.
        let newest = policy(&self.store.on_primary(), self.id, self.tenant).await?;
        self.store.keep_policy(self.id, Arc::clone(&newest)).await;
        Ok(newest)
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

/// Reads a community's policy. One that was only just made has no state yet, and the default policy.
async fn policy(store: &Store, id: CommunityId, tenant: Tenant) -> Result<Arc<Policy>, Error> {
    let read_at = Instant::now();
    let statement = Statement::in_community(
        tenant,
        "SELECT s.community_id, s.tenure_member_from, s.tenure_veteran_from, s.tenure_elder_from,
             t.tier, t.name, t.from_conviction, t.last_rank
         FROM community_states AS s
         LEFT JOIN tiers AS t ON t.shard = $1 AND t.community = $2
         WHERE s.shard = $1 AND s.community = $2
         ORDER BY t.last_rank, t.from_conviction
         LIMIT $limit",
    );
    let rows: Vec<PolicyRow> = store.rows("community_policy", statement, Limit::<MAX_TIERS>::MAX).await?;
    let Some(first) = rows.first() else {
        // Or it was lost with its primary, and is only kept here.
        store.forget_tenant(id).await;
        store.tenant(id).await?.ok_or(Error::NotFound(Missing::Community))?;
        let (tiers, tenure) = (TierPolicy::default(), TenurePolicy::default());
        return Ok(Arc::new(Policy { tiers, tenure, names: HashMap::new(), read_at }));
    };
    if first.community_id != id.get() {
        store.forget_tenant(id).await;
        return Err(Error::other_keys());
    }
    let days = |days: i32| u32::try_from(days).map_err(Error::defect);
    let tenure = TenurePolicy::new(
        days(first.tenure_member_from)?,
        days(first.tenure_veteran_from)?,
        days(first.tenure_elder_from)?,
    )
    .ok_or_else(|| Error::defect("a community's tenures do not ascend"))?;
    let (mut scores, mut ranks, mut names) = (Vec::new(), Vec::new(), HashMap::new());
    for row in rows.iter().filter_map(|row| row.tier.as_ref()) {
        let tier = Tier::parse(row.name.clone()).map_err(Error::defect)?;
        names.insert(row.tier, tier.clone());
        match (row.from_conviction, row.last_rank) {
            (Some(from), _) => scores.push(ScoreTier { tier, from: Conviction::clamp(from) }),
            (None, Some(last)) => {
                let above = u64::try_from(last).map_err(Error::defect)?.saturating_sub(1);
                ranks.push(RankTier { tier, last: Rank::below(above) });
            }
            (None, None) => {}
        }
    }
    Ok(Arc::new(Policy { tiers: TierPolicy::new(scores, ranks)?, tenure, names, read_at }))
}

/// The most names of tiers that a community may have had.
pub(crate) const MAX_TIERS: u32 = 1000;

#[derive(QueryableByName)]
struct PolicyRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Integer)]
    tenure_member_from: i32,
    #[diesel(sql_type = Integer)]
    tenure_veteran_from: i32,
    #[diesel(sql_type = Integer)]
    tenure_elder_from: i32,
    #[diesel(embed)]
    tier: Option<TierRow>,
}

#[derive(QueryableByName)]
#[diesel(table_name = tiers)]
struct TierRow {
    tier: i16,
    name: String,
    from_conviction: Option<i64>,
    last_rank: Option<i32>,
}
