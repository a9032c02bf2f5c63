//! Badges awarded and revoked by an operator.

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Text, Timestamptz};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{Award, Awarder, Badge, BadgeKind, ProfileId, Reason};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::community::Community;
use crate::error::{Error, Missing};
use crate::read::badges::{badge_again, badge_held};
use crate::read::profile::profile_held;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;
use crate::write::change::{BadgeChange, MemberChange};
use crate::write::{lock, member};

impl Community {
    /// Awards a badge. Awarding what is held answers the held badge.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such profile in this community.
    pub async fn badge_award(
        &self,
        profile: ProfileId,
        kind: BadgeKind,
        reason: Option<Reason>,
        by: Option<Awarder>,
    ) -> Result<Award, Error> {
        let (tenant, change) = (self.tenant, self.change());
        self.write("badge_award", move |connection| {
            async move {
                let member = Member::lock(connection, tenant, profile).await?;
                if let Some(badge) = badge_held(connection, tenant, member.number, &kind).await? {
                    return Ok(Award { badge, created: false });
                }
                member.operate(connection, change, &kind, true, reason, by).await?;
                let badge = badge_held(connection, tenant, member.number, &kind).await?;
                let badge = badge.ok_or_else(|| Error::defect("an awarded badge is not held"))?;
                Ok(Award { badge, created: true })
            }
            .boxed()
        })
        .await
    }

    /// Revokes a held badge, and answers it.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such profile, or it does not hold the kind.
    pub async fn badge_revoke(
        &self,
        profile: ProfileId,
        kind: BadgeKind,
        reason: Option<Reason>,
        by: Option<Awarder>,
    ) -> Result<Badge, Error> {
        let (tenant, change) = (self.tenant, self.change());
        self.write("badge_revoke", move |connection| {
            async move {
                let member = Member::lock(connection, tenant, profile).await?;
                let held = badge_held(connection, tenant, member.number, &kind).await?;
                let held = held.ok_or(Error::NotFound(Missing::Badge))?;
                member.operate(connection, change, &kind, false, reason, by).await?;
                badge_again(connection, tenant, member.number, &held).await
            }
            .boxed()
        })
        .await
    }
}

/// A member whose stripe is locked.
struct Member {
    tenant: Tenant,
    number: i64,
    held: lock::Members,
}

impl Member {
    async fn lock(
        connection: &mut AsyncPgConnection,
        tenant: Tenant,
        profile: ProfileId,
    ) -> Result<Self, Error> {
        let locked = lock::member(connection, tenant, profile).await?;
        let (number, held) = locked.ok_or(Error::NotFound(Missing::Profile))?;
        // It may have been erased while the lock was waited for.
        profile_held(connection, tenant, profile).await?;
        Ok(Self { tenant, number, held })
    }

    /// Adds an operation that happens now, which is behind every one that is known, even one of a clock ahead
    /// of ours, and not before the member joined: an erasure of who was there before may be dated ahead, too.
    async fn operate(
        &self,
        connection: &mut AsyncPgConnection,
        change: MemberChange,
        kind: &BadgeKind,
        award: bool,
        reason: Option<Reason>,
        by: Option<Awarder>,
    ) -> Result<(), Error> {
        let now = Statement::in_community(
            self.tenant,
            "SELECT
                 greatest(date_trunc('milliseconds', clock_timestamp()), max(o.at) + interval '1 microsecond',
                     (SELECT m.joined_at FROM members AS m
                      WHERE m.shard = $1 AND m.community = $2 AND m.member = $3)) AS at
             FROM (SELECT k.kind FROM badge_kinds AS k
                 WHERE k.shard = $1 AND k.community = $2 AND k.name = $4 LIMIT 1) AS k
             CROSS JOIN LATERAL (SELECT o.at FROM badge_ops AS o
                 WHERE o.shard = $1 AND o.community = $2 AND o.member = $3 AND o.kind = k.kind
                 ORDER BY o.at DESC, o.op_id DESC LIMIT 1) AS o",
        )
        .bind::<BigInt, _>(self.number)
        .bind::<Text, _>(kind.as_str().to_owned());
        let now: Option<NowRow> = statement::optional(connection, now).await?;
        let at = now.ok_or_else(|| Error::defect("the database does not tell the time"))?.at;
        let badge = BadgeChange { set: (at, Uuid::now_v7()), kind: kind.clone(), award, reason, by };
        let change = MemberChange { badges: vec![badge], ..change };
        member::change_known(connection, &self.held, self.tenant, vec![(self.number, change)]).await
    }
}

#[derive(QueryableByName)]
struct NowRow {
    #[diesel(sql_type = Timestamptz)]
    at: OffsetDateTime,
}
