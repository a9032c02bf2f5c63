//! The two locks that writers of one community take, always in this order.
//!
//! The stripes of its members: with a member's stripe, everything of that member may be changed but the row in `profiles`:
//! scores, badges and their operations, tails of the nym. Then the community itself: with it, the rows in `profiles`, the tiers
//! of whomever they move, and everything that is counted. The first takes most of a writer's time, and writers of different
//! stripes spend it at once; the second is short.
//!
//! Between the two, no writer waits for another but for an id of an event that comes twice, whose writer has its stripes
//! already. Each lock's rows are taken in the order of their keys. So there is no circle of writers that wait.

use std::collections::{BTreeMap, BTreeSet};

use diesel::QueryableByName;
use diesel::sql_types::{Array, BigInt, Nullable, SmallInt, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{CommunityId, ProfileId, Stripe, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::Error;
use crate::fold::Mark;
use crate::profile::in_community;
use crate::statement::{self, Statement};

/// The lock on stripes of members, until the transaction ends.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// How often each community's cuts had been moved when the lock was asked for.
    pub(crate) cuts_moved: BTreeMap<CommunityId, i64>,
}

/// A community's row, as it is when its lock is had.
pub(crate) struct Locked {
    pub(crate) name: Option<Mark>,
    pub(crate) active: Option<Mark>,
    pub(crate) cuts_moved: i64,
}

/// Locks these stripes.
pub(crate) async fn stripes(
    connection: &mut AsyncPgConnection,
    stripes: &BTreeSet<(CommunityId, Stripe)>,
) -> Result<Members, Error> {
    if stripes.is_empty() {
        return Ok(Members::default());
    }
    let lock = Statement::new(
        "SELECT s.community_id, c.cuts_moved
         FROM unnest($1, $2) AS k (community_id, stripe)
         JOIN community_stripes AS s USING (community_id, stripe)
         JOIN communities AS c USING (community_id)
         ORDER BY s.community_id, s.stripe FOR NO KEY UPDATE OF s",
    )
    .bind::<Array<SqlUuid>, _>(stripes.iter().map(|stripe| stripe.0.get()).collect::<Vec<_>>())
    .bind::<Array<SmallInt>, _>(
        stripes.iter().map(|stripe| i16::from(stripe.1.number())).collect::<Vec<_>>(),
    );
    let rows: Vec<StripeRow> = statement::by_keys(connection, lock, stripes.len()).await?;
    if rows.len() < stripes.len() {
        return Err(Error::defect("a community has no row for one of its stripes"));
    }
    Ok(Members {
        cuts_moved: rows.into_iter().map(|row| (row.community_id.into(), row.cuts_moved)).collect(),
    })
}

/// Gives new communities the rows of their stripes.
pub(crate) async fn stripes_insert(
    connection: &mut AsyncPgConnection,
    communities: &[CommunityId],
) -> Result<(), Error> {
    let insert = Statement::new(
        "INSERT INTO community_stripes (community_id, stripe)
         SELECT c.community_id, s.stripe FROM unnest($1) AS c (community_id) CROSS JOIN unnest($2) AS s (stripe)",
    )
    .bind::<Array<SqlUuid>, _>(communities.iter().map(|community| community.get()).collect::<Vec<_>>())
    .bind::<Array<SmallInt>, _>(Stripe::all().map(|stripe| i16::from(stripe.number())).collect::<Vec<_>>());
    statement::execute(connection, insert).await?;
    Ok(())
}

/// Locks every member of a community.
pub(crate) async fn all_members(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
) -> Result<Members, Error> {
    stripes(connection, &Stripe::all().map(|stripe| (community, stripe)).collect()).await
}

/// Locks one member, and whoever is of the same stripe. Of a profile that is not there, or was erased, there is nothing to
/// lock.
pub(crate) async fn member(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
    profile: ProfileId,
) -> Result<Members, Error> {
    let find = in_community(
        "SELECT user_id FROM profiles WHERE community_id = $1 AND profile_id = $2 AND user_id IS NOT NULL",
        community,
    )
    .bind::<SqlUuid, _>(profile.get());
    let Some(row) = statement::optional::<UserRow>(connection, find).await? else {
        return Ok(Members::default());
    };
    let user = UserId::parse(row.user_id).map_err(Error::defect)?;
    stripes(connection, &BTreeSet::from([(community, Stripe::of(&user))])).await
}

/// Locks communities themselves. Stripes of members come before.
pub(crate) async fn communities(
    connection: &mut AsyncPgConnection,
    communities: &BTreeSet<CommunityId>,
) -> Result<BTreeMap<CommunityId, Locked>, Error> {
    let lock = Statement::new(
        "SELECT community_id, name_at, name_event, active_at, active_event, cuts_moved
         FROM communities WHERE community_id = ANY($1) ORDER BY community_id FOR NO KEY UPDATE",
    )
    .bind::<Array<SqlUuid>, _>(communities.iter().map(|community| community.get()).collect::<Vec<_>>());
    let rows: Vec<LockedRow> = statement::by_keys(connection, lock, communities.len()).await?;
    let locked = rows.into_iter().map(|row| {
        let locked = Locked {
            name: row.name_at.zip(row.name_event),
            active: row.active_at.zip(row.active_event),
            cuts_moved: row.cuts_moved,
        };
        (row.community_id.into(), locked)
    });
    Ok(locked.collect())
}

/// Locks one community itself.
pub(crate) async fn community(
    connection: &mut AsyncPgConnection,
    community: CommunityId,
) -> Result<(), Error> {
    communities(connection, &BTreeSet::from([community])).await.map(|_| ())
}

#[derive(QueryableByName)]
struct StripeRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = BigInt)]
    cuts_moved: i64,
}

#[derive(QueryableByName)]
struct UserRow {
    #[diesel(sql_type = Text)]
    user_id: String,
}

#[derive(QueryableByName)]
struct LockedRow {
    #[diesel(sql_type = SqlUuid)]
    community_id: Uuid,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    name_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    name_event: Option<Uuid>,
    #[diesel(sql_type = Nullable<Timestamptz>)]
    active_at: Option<OffsetDateTime>,
    #[diesel(sql_type = Nullable<SqlUuid>)]
    active_event: Option<Uuid>,
    #[diesel(sql_type = BigInt)]
    cuts_moved: i64,
}
