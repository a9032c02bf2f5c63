//! The erasure of one person: for good, since whoever was erased is [remembered](crate::write::erased).

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{ProfileId, UserId};
use time::OffsetDateTime;

use crate::community::Community;
use crate::error::{Error, Missing};
use crate::schema::members;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;
use crate::write::change::MemberChange;
use crate::write::{badges, erased, lock, member, outbox};

impl Community {
    /// Erases a person: names, ids, wallet, badges, history and scores are removed, and every count follows. What
    /// stays is a row without content, so that ids given out before are known to be gone, and a keyed hash of the
    /// person with the time, so that no event dated until now has an effect on them any more. An event dated later
    /// makes a new profile, which is seen once the person joins.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such profile, or it was erased before.
    pub async fn profile_erase(&self, id: ProfileId) -> Result<(), Error> {
        let (tenant, key, change) = (self.tenant, self.store.erasure_key().clone(), self.change());
        let erased = self.write("profile_erase", move |connection| {
            async move {
                // What is sent after this was answered has no name any more.
                outbox::claim(connection, tenant).await?;
                // Whom the person awarded may be anybody.
                let held = lock::all_members(connection, tenant).await?;
                let find = Statement::in_community(
                    tenant,
                    "SELECT member, user_id FROM members
                         WHERE shard = $1 AND community = $2 AND profile_id = $3 AND user_id IS NOT NULL",
                )
                .bind::<SqlUuid, _>(id.get());
                let person: Option<PersonRow> = statement::optional(connection, find).await?;
                // That they were erased before may not be on a synchronous standby yet: the locks are committed, and wait for it.
                let Some(person) = person else { return Ok(false) };
                let user = person.user()?;
                let now = erased::remember(connection, &key, tenant, &user).await?;
                erase(connection, &held, tenant, person.member, &user, change, (now, None)).await?;
                Ok(true)
            }
            .boxed()
        });
        if erased.await? { Ok(()) } else { Err(Error::NotFound(Missing::Profile)) }
    }
}

/// Erases a member and every mention of the person: of any date, or up to `until`. Its changes are claimed, and every stripe of the
/// community is locked.
pub(crate) async fn erase(
    connection: &mut AsyncPgConnection,
    held: &lock::Members,
    tenant: Tenant,
    member: i64,
    user: &UserId,
    change: MemberChange,
    (erased_at, until): (OffsetDateTime, Option<OffsetDateTime>),
) -> Result<(), Error> {
    // Out of sight first: everything that counts the person follows.
    let change = MemberChange { hidden: Some(true), erased: true, ..change };
    member::change_known(connection, held, tenant, vec![(member, change)]).await?;
    const ERASURES: [&str; 3] = [
        "DELETE FROM badge_ops WHERE shard = $1 AND community = $2 AND member = $3",
        "DELETE FROM tier_changes WHERE shard = $1 AND community = $2 AND member = $3",
        "DELETE FROM activity_adds WHERE shard = $1 AND community = $2 AND member = $3",
    ];
    for sql in ERASURES {
        let erasure = Statement::in_community(tenant, sql).bind::<BigInt, _>(member);
        statement::execute(connection, erasure).await?;
    }
    let empty = Statement::in_community(
        tenant,
        "UPDATE members SET user_id = NULL, wallet = NULL, username = NULL, username_set_at = NULL,
             username_set_by = NULL, nick = NULL, nick_set_at = NULL, nick_set_by = NULL, nym_key = '',
             presence_set_at = NULL, presence_set_by = NULL, conviction = 0, conviction_set_at = NULL,
             conviction_set_by = NULL, activity = 0, activity_set_at = NULL, activity_set_by = NULL,
             last_active_at = NULL, joined_at = 'epoch', tier = NULL, badge_count = 0, erased_at = $4
         WHERE shard = $1 AND community = $2 AND member = $3",
    )
    .bind::<BigInt, _>(member)
    .bind::<Timestamptz, _>(erased_at);
    statement::execute(connection, empty).await?;
    outbox::scrub(connection, tenant, user.as_str()).await?;
    badges::forget_awarder(connection, tenant, user.as_str(), until).await
}

/// A person who has a profile and was not erased.
#[derive(QueryableByName)]
#[diesel(table_name = members)]
pub(crate) struct PersonRow {
    pub(crate) member: i64,
    user_id: Option<String>,
}

impl PersonRow {
    pub(crate) fn user(&self) -> Result<UserId, Error> {
        UserId::parse(self.user_id.clone().unwrap_or_default()).map_err(Error::defect)
    }
}
