//! The tier policy, replaced by an operator.

use diesel::QueryableByName;
use diesel::sql_types::BigInt;
use futures_util::FutureExt;
use muster_domain::{PageLimit, TierPolicy};

use crate::community::Community;
use crate::error::Error;
use crate::schema::members;
use crate::write::change::MemberChange;
use crate::write::{lock, member, tiers};

impl Community {
    /// Replaces the tiers, and gives every member the one it now holds; each that moved is recorded. The
    /// members' tiers are assigned in batches of 1000, so that others' writes go on between them; until it returns
    /// some still hold a tier of the policy before.
    ///
    /// # Errors
    /// [`Error::Unavailable`] part-way when the database is; the call is safe to repeat. [`Error::OutOfBounds`]
    /// when the community has had too many tiers.
    pub async fn tier_policy_replace(&self, policy: &TierPolicy) -> Result<(), Error> {
        let tenant = self.tenant;
        let replacement = policy.clone();
        self.write("tier_policy_replace", move |connection| {
            async move {
                lock::community(connection, tenant).await?;
                tiers::policy_replace(connection, tenant, &replacement).await
            }
            .boxed()
        })
        .await?;
        self.store.forget_policy(self.id).await;
        let mut after = 0;
        loop {
            let statement = self
                .statement(
                    "SELECT member FROM members WHERE shard = $1 AND community = $2 AND member > $3
                     ORDER BY member LIMIT $limit",
                )
                .bind::<BigInt, _>(after);
            let (batch, more) =
                self.store.page::<MemberRow, 1000>("tier_policy_replace", statement, PageLimit::MAX).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            after = last.member;
            let traceparent = self.traceparent.clone();
            self.write("tier_policy_replace", move |connection| {
                async move {
                    let held = lock::all_members(connection, tenant).await?;
                    let changes = batch.iter().map(|row| {
                        let traceparent = traceparent.clone();
                        (
                            row.member,
                            MemberChange { recheck_tier: true, traceparent, ..MemberChange::default() },
                        )
                    });
                    let changes = changes.collect();
                    member::change_known(connection, &held, tenant, changes).await
                }
                .boxed()
            })
            .await?;
            if !more {
                return Ok(());
            }
        }
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = members)]
struct MemberRow {
    member: i64,
}
