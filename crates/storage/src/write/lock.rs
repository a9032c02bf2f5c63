//! The two locks that writers of one community take, always in this order. Who also claims its changes (`outbox::claim`) does so
//! before.
//!
//! The stripes of its members: with a member's stripe, everything of that member may be changed but what holds its tier: badges and
//! their operations, additions to activity, suffixes of the nym, and the places on the boards of conviction and activity. Then the
//! community itself: with it, the rows in `members`, the directory and the board of badges, for the writer's members and for whomever
//! they move to another tier, and everything that is counted. Writers of different stripes spend the first part at once.
//!
//! Between the two, no writer waits for another but for an id of an event that comes twice, whose writer has its stripes
//! already. Each lock's rows are taken in the order of their keys. So there is no circle of writers that wait.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::{
    ExpressionMethods, NullableExpressionMethods, OptionalExtension, QueryDsl, QueryableByName,
};
use diesel::sql_types::{Array, BigInt, Integer, SmallInt};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use muster_domain::{CommunityId, ProfileId, Shard, Stripe, UserId};
use time::OffsetDateTime;
use uuid::Uuid;

use super::change::Watermark;
use crate::error::Error;
use crate::schema::{community_states, members};
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;

/// The lock on stripes of members, until the transaction ends.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// How often each community's thresholds had been moved when the lock was asked for.
    pub(crate) thresholds_moved: BTreeMap<i32, i64>,
}

/// What is said where a community's state is not there, or is another's.
const OF_ANOTHER: &str = "communities of this worker are not in the database: it was restored, or is another since a failover; they are \
     looked up again";

/// A community's state, as it is when its lock is held.
pub(crate) struct Locked {
    pub(crate) id: CommunityId,
    pub(crate) name: Option<Watermark>,
    pub(crate) active: Option<Watermark>,
    pub(crate) thresholds_moved: i64,
    pub(crate) outbox: Outbox,
}

/// How far a community's changes are.
pub(crate) struct Outbox {
    /// The number of the last one.
    pub(crate) last: i64,
    /// That of the last that is published.
    pub(crate) published: i64,
    /// That of the last one that says that others were lost.
    pub(crate) lost: i64,
    /// Which types are published, one bit each.
    pub(crate) types: i16,
}

impl Outbox {
    /// How many changes wait to be published.
    pub(crate) fn waiting(&self) -> i64 {
        self.last.saturating_sub(self.published.max(self.lost.saturating_sub(1)))
    }
}

/// Fails where a locked community has another id than is known of its number.
pub(crate) fn check(locked: &BTreeMap<i32, Locked>, known: &BTreeMap<i32, CommunityId>) -> Result<(), Error> {
    let is_known = |(number, locked): (&i32, &Locked)| known.get(number).is_none_or(|id| *id == locked.id);
    if locked.iter().all(is_known) { Ok(()) } else { Err(Error::Unavailable(OF_ANOTHER.into())) }
}

/// Locks these stripes.
pub(crate) async fn stripes(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    stripes: &BTreeSet<(i32, Stripe)>,
) -> Result<Members, Error> {
    if stripes.is_empty() {
        return Ok(Members::default());
    }
    let lock = Statement::in_shard(
        shard,
        "SELECT s.community, c.thresholds_moved
         FROM unnest($2, $3) AS k (community, stripe)
         JOIN community_stripes AS s ON s.shard = $1 AND s.community = k.community AND s.stripe = k.stripe
         JOIN community_states AS c ON c.shard = $1 AND c.community = k.community
         ORDER BY s.community, s.stripe FOR NO KEY UPDATE OF s",
    )
    .bind::<Array<Integer>, _>(stripes.iter().map(|stripe| stripe.0).collect::<Vec<_>>())
    .bind::<Array<SmallInt>, _>(
        stripes.iter().map(|stripe| i16::from(stripe.1.number())).collect::<Vec<_>>(),
    );
    let rows: Vec<StripeRow> = statement::by_keys(connection, lock, stripes.len()).await?;
    if rows.len() < stripes.len() {
        return Err(Error::Unavailable(OF_ANOTHER.into()));
    }
    Ok(Members {
        thresholds_moved: rows.into_iter().map(|row| (row.community, row.thresholds_moved)).collect(),
    })
}

/// Locks every member of a community.
pub(crate) async fn all_members(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
) -> Result<Members, Error> {
    let all = Stripe::all().map(|stripe| (tenant.community, stripe)).collect();
    stripes(connection, tenant.shard, &all).await
}

/// Locks one member, and whoever is of the same stripe; answers the member's number. There is nothing to lock of a profile that is
/// not there, or was erased.
pub(crate) async fn member(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    profile: ProfileId,
) -> Result<Option<(i64, Members)>, Error> {
    let (shard, community) = (i16::from(tenant.shard.number()), tenant.community);
    let find = members::table
        .filter(members::shard.eq(shard))
        .filter(members::community.eq(community))
        .filter(members::profile_id.eq(profile.get()))
        .filter(members::user_id.is_not_null())
        .select((members::member, members::user_id.assume_not_null()));
    let found: Option<(i64, String)> = find.get_result(connection).await.optional()?;
    let Some((member, user)) = found else { return Ok(None) };
    let user = UserId::parse(user).map_err(Error::defect)?;
    let stripe = BTreeSet::from([(tenant.community, Stripe::of(&user))]);
    Ok(Some((member, stripes(connection, tenant.shard, &stripe).await?)))
}

/// Locks communities themselves. Stripes of members come before.
pub(crate) async fn communities(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &BTreeSet<i32>,
) -> Result<BTreeMap<i32, Locked>, Error> {
    let lock = Statement::in_shard(
        shard,
        "SELECT s.community, s.community_id, s.name_set_at, s.name_set_by, s.active_set_at, s.active_set_by,
             s.thresholds_moved, s.changes, s.changes_lost, s.change_types,
             coalesce((SELECT p.number FROM changes_published AS p
                 WHERE p.shard = $1 AND p.community = s.community), 0) AS published
         FROM community_states AS s WHERE s.shard = $1 AND s.community = ANY($2)
         ORDER BY s.community FOR NO KEY UPDATE OF s",
    )
    .bind::<Array<Integer>, _>(communities.iter().copied().collect::<Vec<_>>());
    let rows: Vec<LockedRow> = statement::by_keys(connection, lock, communities.len()).await?;
    if rows.len() < communities.len() {
        return Err(Error::Unavailable(OF_ANOTHER.into()));
    }
    let locked = rows.into_iter().map(|row| {
        let locked = Locked {
            id: row.community_id.into(),
            name: row.name_set_at.zip(row.name_set_by),
            active: row.active_set_at.zip(row.active_set_by),
            thresholds_moved: row.thresholds_moved,
            outbox: Outbox {
                last: row.changes,
                published: row.published,
                lost: row.changes_lost,
                types: row.change_types,
            },
        };
        (row.community, locked)
    });
    Ok(locked.collect())
}

/// Locks one community itself.
pub(crate) async fn community(connection: &mut AsyncPgConnection, tenant: Tenant) -> Result<(), Error> {
    communities(connection, tenant.shard, &BTreeSet::from([tenant.community])).await.map(drop)
}

#[derive(QueryableByName)]
struct StripeRow {
    #[diesel(sql_type = Integer)]
    community: i32,
    #[diesel(sql_type = BigInt)]
    thresholds_moved: i64,
}

#[derive(QueryableByName)]
#[diesel(table_name = community_states)]
struct LockedRow {
    community: i32,
    community_id: Uuid,
    name_set_at: Option<OffsetDateTime>,
    name_set_by: Option<Uuid>,
    active_set_at: Option<OffsetDateTime>,
    active_set_by: Option<Uuid>,
    thresholds_moved: i64,
    changes: i64,
    changes_lost: i64,
    change_types: i16,
    #[diesel(sql_type = BigInt)]
    published: i64,
}
