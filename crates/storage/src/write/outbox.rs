//! The outbox: what siblings are told, written in the transaction that makes it, with the community's lock. So a change has the next
//! number of its community, and there is no gap.

use std::collections::BTreeMap;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{ChangeType, Disappearance, Limit, Nym, Shard};
use uuid::Uuid;

use super::lock::Locked;
use super::member_rows::NumberKey;
use crate::error::Error;
use crate::schema::badge_ops;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;

/// The most changes of a community that wait to be published. Beyond that they are dropped, and that is told instead.
pub(crate) const MAX_WAITING: u32 = 100_000;

/// What is told of one member.
pub(crate) struct News {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) profile: Uuid,
    pub(crate) user: String,
    pub(crate) what: Told,
    /// The trace of what caused it.
    pub(crate) traceparent: Option<String>,
}

/// What is new. Tiers and kinds are named when they are written.
pub(crate) enum Told {
    Disappeared(Disappearance),
    Appeared { tier: Option<i16> },
    Renamed { from: Nym, to: Nym },
    Tier { promotion: bool, from: Option<i16>, to: Option<i16> },
    Badge { held: bool, badge: Uuid, kind: i32, reason: Option<String> },
}

impl Told {
    const fn change_type(&self) -> ChangeType {
        match self {
            Self::Disappeared(_) => ChangeType::MemberDisappeared,
            Self::Appeared { .. } => ChangeType::MemberAppeared,
            Self::Renamed { .. } => ChangeType::MemberRenamed,
            Self::Tier { promotion: true, .. } => ChangeType::TierPromoted,
            Self::Tier { promotion: false, .. } => ChangeType::TierDemoted,
            Self::Badge { held: true, .. } => ChangeType::BadgeAwarded,
            Self::Badge { held: false, .. } => ChangeType::BadgeRevoked,
        }
    }
}

/// The number of a type in the database, from 1: its place in [`ChangeType::ALL`].
pub(crate) const fn number_of(change_type: ChangeType) -> i16 {
    match change_type {
        ChangeType::MemberDisappeared => 1,
        ChangeType::MemberAppeared => 2,
        ChangeType::MemberRenamed => 3,
        ChangeType::TierPromoted => 4,
        ChangeType::TierDemoted => 5,
        ChangeType::BadgeRevoked => 6,
        ChangeType::BadgeAwarded => 7,
        ChangeType::Lost => 8,
    }
}

/// The bit of a type in `changes_told`. That changes were lost is told whatever else is.
pub(crate) const fn bit_of(change_type: ChangeType) -> i16 {
    match change_type {
        ChangeType::Lost => 0,
        told => 1_i16 << (number_of(told) - 1),
    }
}

/// Writes what is told of members, in an order in which a follower can take it. Where too much waits already, what waits is dropped
/// instead, and that is told.
pub(crate) async fn write(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    locked: &BTreeMap<i32, Locked>,
    news: Vec<News>,
) -> Result<(), Error> {
    let mut told: BTreeMap<i32, Vec<News>> = BTreeMap::new();
    for news in news {
        let of =
            locked.get(&news.community).ok_or_else(|| Error::defect("a change of no locked community"))?;
        if of.changes.told & bit_of(news.what.change_type()) != 0 {
            told.entry(news.community).or_default().push(news);
        }
    }
    let (mut rows, mut lost) = (Vec::new(), Vec::new());
    for (community, mut news) in told {
        let Some(Locked { changes, .. }) = locked.get(&community) else { continue };
        let new = i64::try_from(news.len()).map_err(Error::defect)?;
        if changes.waiting().saturating_add(new) > i64::from(MAX_WAITING) {
            let number = changes.last.saturating_add(new).saturating_add(1);
            let dropped = number.saturating_sub(1).saturating_sub(changes.published);
            lost.push(LostRow { community, number, lost: dropped, change_id: Uuid::now_v7() });
            continue;
        }
        news.sort_by_key(|news| (news.member, number_of(news.what.change_type())));
        rows.extend((1..).zip(news).map(|(step, news)| news.row(changes.last.saturating_add(step))));
    }
    let insert = "WITH told AS (
             INSERT INTO changes (shard, change_type, community, number, at, change_id, profile_id, badge_id, user_id,
                 told_from, told_to, reason, traceparent)
             SELECT $1, rows.change_type, rows.community, rows.number, statement_timestamp(), rows.change_id,
                 rows.profile_id, rows.badge_id, rows.user_id,
                 coalesce(rows.told_from, (SELECT t.name FROM tiers AS t
                     WHERE t.shard = $1 AND t.community = rows.community AND t.tier = rows.from_tier)),
                 coalesce(rows.told_to, (SELECT t.name FROM tiers AS t
                     WHERE t.shard = $1 AND t.community = rows.community AND t.tier = rows.to_tier),
                     (SELECT k.name FROM badge_kinds AS k
                     WHERE k.shard = $1 AND k.community = rows.community AND k.kind = rows.kind)),
                 rows.reason, rows.traceparent
             FROM $rows
             RETURNING community, number
         )
         UPDATE community_states AS s SET changes = rows.number
         FROM (SELECT community, max(number) AS number FROM told GROUP BY community) AS rows
             CROSS JOIN LATERAL (SELECT r.ctid FROM community_states AS r
                 WHERE r.shard = $1 AND r.community = rows.community LIMIT 1) AS found
         WHERE s.shard = $1 AND s.ctid = found.ctid";
    statement::write(connection, Statement::in_shard(shard, insert), rows).await?;
    drop_waiting(connection, shard, lost).await
}

/// Drops what waits of these communities, and tells that.
async fn drop_waiting(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    lost: Vec<LostRow>,
) -> Result<(), Error> {
    for row in lost {
        // What is just being removed because it is published is not waited for.
        let drop = Statement::in_community(
            Tenant { shard, community: row.community },
            "WITH waiting AS MATERIALIZED (
                 SELECT c.ctid FROM changes AS c WHERE c.shard = $1 AND c.community = $2
                 ORDER BY c.number FOR UPDATE SKIP LOCKED)
             DELETE FROM changes AS c USING waiting WHERE c.shard = $1 AND c.ctid = waiting.ctid",
        );
        statement::execute(connection, drop).await?;
        let tell = "WITH told AS (
                 INSERT INTO changes (shard, change_type, community, number, lost, at, change_id)
                 SELECT $1, 8, rows.community, rows.number, rows.lost, statement_timestamp(), rows.change_id FROM $rows
                 RETURNING community, number
             )
             UPDATE community_states AS s SET changes = rows.number, changes_lost = rows.number
             FROM (SELECT community, number FROM told) AS rows
                 CROSS JOIN LATERAL (SELECT r.ctid FROM community_states AS r
                     WHERE r.shard = $1 AND r.community = rows.community LIMIT 1) AS found
             WHERE s.shard = $1 AND s.ctid = found.ctid";
        statement::write(connection, Statement::in_shard(shard, tell), vec![row]).await?;
    }
    Ok(())
}

/// A badge that a member holds.
#[derive(QueryableByName)]
#[diesel(table_name = badge_ops)]
pub(crate) struct HeldBadge {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) kind: i32,
    pub(crate) op_id: Uuid,
    pub(crate) reason: Option<String>,
}

/// The badges that these members hold: no more than can wait to be told.
pub(crate) async fn held_badges(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: Vec<NumberKey>,
) -> Result<Vec<HeldBadge>, Error> {
    if members.is_empty() {
        return Ok(Vec::new());
    }
    let find = Statement::in_shard(
        shard,
        "SELECT rows.community, rows.key AS member, b.kind, b.op_id, b.reason FROM $rows
         CROSS JOIN LATERAL (SELECT o.kind, o.op_id, o.reason FROM badge_ops AS o
             WHERE o.shard = $1 AND o.community = rows.community AND o.member = rows.key
                 AND o.is_badge AND o.revoked_at IS NULL
             ORDER BY o.at, o.op_id LIMIT $limit) AS b
         LIMIT $limit",
    );
    Ok(statement::rows(connection, find.rows(members), Limit::<MAX_WAITING>::MAX).await?)
}

/// Takes what is personal out of what waits to be told of a member who is erased, but for the ids by which followers drop them.
pub(crate) async fn scrub(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    user: &str,
) -> Result<(), Error> {
    let scrub = Statement::in_community(
        tenant,
        "WITH waiting AS MATERIALIZED (
             SELECT c.ctid FROM changes AS c WHERE c.shard = $1 AND c.community = $2 AND c.user_id = $3
                 AND (c.change_type = 3 OR c.reason IS NOT NULL)
             ORDER BY c.number FOR UPDATE SKIP LOCKED)
         UPDATE changes AS c SET reason = NULL,
             told_from = CASE c.change_type WHEN 3 THEN c.user_id ELSE c.told_from END,
             told_to = CASE c.change_type WHEN 3 THEN c.user_id ELSE c.told_to END
         FROM waiting WHERE c.shard = $1 AND c.ctid = waiting.ctid",
    )
    .bind::<Text, _>(user.to_owned());
    statement::execute(connection, scrub).await?;
    Ok(())
}

impl News {
    fn row(self, number: i64) -> ChangeRow {
        let mut row = ChangeRow {
            community: self.community,
            change_type: number_of(self.what.change_type()),
            number,
            change_id: Uuid::now_v7(),
            profile_id: self.profile,
            user_id: self.user,
            badge_id: None,
            from_tier: None,
            to_tier: None,
            kind: None,
            told_from: None,
            told_to: None,
            reason: None,
            traceparent: self.traceparent,
        };
        match self.what {
            Told::Disappeared(why) => row.told_to = Some(why.as_str().to_owned()),
            Told::Appeared { tier } => row.to_tier = tier,
            Told::Renamed { from, to } => (row.told_from, row.told_to) = (Some(from.into()), Some(to.into())),
            Told::Tier { from, to, .. } => (row.from_tier, row.to_tier) = (from, to),
            Told::Badge { badge, kind, reason, .. } => {
                (row.badge_id, row.kind, row.reason) = (Some(badge), Some(kind), reason);
            }
        }
        row
    }
}

columns! {
    struct ChangeRow {
        community: i32 => Integer,
        change_type: i16 => SmallInt,
        number: i64 => BigInt,
        change_id: Uuid => SqlUuid,
        profile_id: Uuid => SqlUuid,
        user_id: String => Text,
        badge_id: Option<Uuid> => Nullable<SqlUuid>,
        from_tier: Option<i16> => Nullable<SmallInt>,
        to_tier: Option<i16> => Nullable<SmallInt>,
        kind: Option<i32> => Nullable<Integer>,
        told_from: Option<String> => Nullable<Text>,
        told_to: Option<String> => Nullable<Text>,
        reason: Option<String> => Nullable<Text>,
        traceparent: Option<String> => Nullable<Text>,
    }
}

columns! {
    struct LostRow {
        community: i32 => Integer,
        number: i64 => BigInt,
        lost: i64 => BigInt,
        change_id: Uuid => SqlUuid,
    }
}
