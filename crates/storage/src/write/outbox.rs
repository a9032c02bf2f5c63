//! The outbox: the changes that are to be published to siblings. Each is written in the transaction that makes it, with the community's
//! lock, so it has the community's next number and there is no gap.

use std::collections::{BTreeMap, BTreeSet};

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Nullable, SmallInt, Text, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{ChangeType, Disappearance, Limit, Nym, Shard};
use uuid::Uuid;

use super::lock::Locked;
use super::member_rows::NumberKey;
use crate::error::Error;
use crate::schema::badge_ops;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;

/// The most changes of a community that wait to be published. Beyond that they are dropped, and one that says so is published instead.
pub(crate) const MAX_WAITING: u32 = 100_000;

/// A change of one member that has no number yet.
pub(crate) struct PendingChange {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) profile: Uuid,
    pub(crate) user: String,
    pub(crate) what: Detail,
    /// The trace of what caused it.
    pub(crate) traceparent: Option<String>,
}

/// What changed. Tiers and kinds of badges are named when it is written.
pub(crate) enum Detail {
    Disappeared(Disappearance),
    Appeared { tier: Option<i16> },
    Renamed { from: Nym, to: Nym },
    Tier { promotion: bool, from: Option<i16>, to: Option<i16> },
    Badge { held: bool, badge: Uuid, kind: i32, reason: Option<String> },
}

impl Detail {
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

/// The number of a type in the database.
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

/// The bit of a type in `change_types`. That changes were lost is always published, and has none.
pub(crate) const fn bit_of(change_type: ChangeType) -> i16 {
    match change_type {
        ChangeType::Lost => 0,
        other => 1_i16 << (number_of(other) - 1),
    }
}

/// Writes changes of members to the outbox, of each community those of the types that it publishes. Where too many wait, they are
/// dropped, and a change that says so takes their place; so it is where not all badges that are held were read, in the communities `cut`.
pub(crate) async fn write(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    locked: &BTreeMap<i32, Locked>,
    changes: Vec<PendingChange>,
    cut: &BTreeSet<i32>,
) -> Result<(), Error> {
    let mut communities: BTreeMap<i32, Vec<PendingChange>> = BTreeMap::new();
    for change in changes {
        communities.entry(change.community).or_default().push(change);
    }
    let (mut rows, mut last, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for (community, mut changes) in communities {
        let outbox =
            &locked.get(&community).ok_or_else(|| Error::defect("a change of no locked community"))?.outbox;
        // An erasure is told by whoever tells anything: followers know the person from other changes.
        let is_told = |what: &Detail| match what {
            Detail::Disappeared(Disappearance::Erased) => outbox.types != 0,
            other => outbox.types & bit_of(other.change_type()) != 0,
        };
        changes.retain(|change| is_told(&change.what));
        let new = i64::try_from(changes.len()).map_err(Error::defect)?;
        let is_cut = cut.contains(&community) && outbox.types & bit_of(ChangeType::BadgeAwarded) != 0;
        let is_too_much = new > 0 && outbox.waiting().saturating_add(new) > i64::from(MAX_WAITING);
        if is_cut || is_too_much {
            let last_lost = outbox.last.saturating_add(new.max(1));
            lost.push(LostRow {
                community,
                number: last_lost.saturating_add(1),
                lost: last_lost.saturating_sub(outbox.published),
                change_id: Uuid::now_v7(),
            });
            continue;
        }
        changes.sort_by_key(|change| (change.member, number_of(change.what.change_type())));
        if new > 0 {
            last.push(LastRow { community, number: outbox.last.saturating_add(new) });
        }
        rows.extend((1..).zip(changes).map(|(step, change)| change.row(outbox.last.saturating_add(step))));
    }
    let insert = "INSERT INTO changes (shard, change_type, community, number, at, change_id, profile_id, badge_id, user_id,
                 value_from, value_to, reason, traceparent)
             SELECT here.shard, rows.change_type, rows.community, rows.number, statement_timestamp(), rows.change_id,
                 rows.profile_id, rows.badge_id, rows.user_id,
                 coalesce(rows.value_from, (SELECT t.name FROM tiers AS t
                     WHERE t.shard = $1 AND t.community = rows.community AND t.tier = rows.from_tier)),
                 coalesce(rows.value_to, (SELECT t.name FROM tiers AS t
                     WHERE t.shard = $1 AND t.community = rows.community AND t.tier = rows.to_tier),
                     (SELECT k.name FROM badge_kinds AS k
                     WHERE k.shard = $1 AND k.community = rows.community AND k.kind = rows.kind)),
                 rows.reason, rows.traceparent
             FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1";
    statement::write(connection, Statement::in_shard(shard, insert), rows).await?;
    let count = concat!(
        "UPDATE community_states AS s SET changes = rows.number FROM ",
        rows_in!("community_states"),
        " WHERE s.shard = $1 AND s.ctid = found.ctid"
    );
    statement::write(connection, Statement::in_shard(shard, count), last).await?;
    drop_waiting(connection, shard, lost).await
}

/// Drops the changes that wait in these communities, and writes that they are lost.
async fn drop_waiting(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    lost: Vec<LostRow>,
) -> Result<(), Error> {
    for row in lost {
        // Changes that a publisher is just removing are not waited for.
        let drop = Statement::in_community(
            Tenant { shard, community: row.community },
            "WITH waiting AS MATERIALIZED (
                 SELECT c.ctid FROM changes AS c WHERE c.shard = $1 AND c.community = $2
                 ORDER BY c.number FOR UPDATE SKIP LOCKED)
             DELETE FROM changes AS c USING waiting WHERE c.shard = $1 AND c.ctid = waiting.ctid",
        );
        statement::execute(connection, drop).await?;
        let last = vec![LastRow { community: row.community, number: row.number }];
        let write = "INSERT INTO changes (shard, change_type, community, number, lost, at, change_id)
                 SELECT here.shard, 8, rows.community, rows.number, rows.lost, statement_timestamp(), rows.change_id
                 FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1";
        statement::write(connection, Statement::in_shard(shard, write), vec![row]).await?;
        let count = concat!(
            "UPDATE community_states AS s SET changes = rows.number, changes_lost = rows.number FROM ",
            rows_in!("community_states"),
            " WHERE s.shard = $1 AND s.ctid = found.ctid"
        );
        statement::write(connection, Statement::in_shard(shard, count), last).await?;
    }
    Ok(())
}

/// How many bytes of reasons one batch may read of badges that are held.
const MAX_REASONS: i64 = 16 * 1024 * 1024;

/// A badge that a member holds.
#[derive(QueryableByName)]
#[diesel(table_name = badge_ops)]
pub(crate) struct HeldBadge {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) kind: i32,
    pub(crate) op_id: Uuid,
    pub(crate) reason: Option<String>,
    /// The bytes of its reason and of those before it.
    #[diesel(sql_type = BigInt)]
    bytes: i64,
}

/// Members of a community who appear, and how many badges they hold.
#[derive(Default)]
pub(crate) struct Appeared {
    members: Vec<i64>,
    badges: i64,
}

impl Appeared {
    pub(crate) fn push(&mut self, member: i64, badges: i32) {
        self.members.push(member);
        self.badges = self.badges.saturating_add(badges.into());
    }
}

/// The badges that these members hold, and the communities of which they are not among them: of each that has more than changes may wait, or
/// reasons that are too long in all. Where only all together have, those with the fewest are read first, while there is room.
pub(crate) async fn held_badges(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    appeared: BTreeMap<i32, Appeared>,
) -> Result<(Vec<HeldBadge>, BTreeSet<i32>), Error> {
    let all = appeared.iter().flat_map(|(community, appeared)| keys(*community, appeared)).collect();
    if let Some(held) = held_of(connection, shard, all).await? {
        return Ok((held, BTreeSet::new()));
    }
    let mut communities: Vec<(i32, Appeared)> = appeared.into_iter().collect();
    communities.sort_unstable_by_key(|(community, appeared)| (appeared.badges, *community));
    let (mut held, mut bytes, mut cut) = (Vec::new(), 0_i64, BTreeSet::new());
    for (community, appeared) in communities {
        let all = i64::try_from(held.len()).map_err(Error::defect)?.saturating_add(appeared.badges);
        if bytes >= MAX_REASONS || all > i64::from(MAX_WAITING) {
            cut.insert(community);
            continue;
        }
        let of = held_of(connection, shard, keys(community, &appeared).collect()).await?;
        let of_bytes = |of: &[HeldBadge]| of.last().map_or(0, |last| last.bytes);
        let fits = |of: &Vec<HeldBadge>| {
            u64::try_from(held.len().saturating_add(of.len())).is_ok_and(|all| all <= u64::from(MAX_WAITING))
                && bytes.saturating_add(of_bytes(of)) <= MAX_REASONS
        };
        match of.filter(fits) {
            Some(of) => {
                bytes = bytes.saturating_add(of_bytes(&of));
                held.extend(of);
            }
            None => {
                cut.insert(community);
            }
        }
    }
    Ok((held, cut))
}

fn keys(community: i32, appeared: &Appeared) -> impl Iterator<Item = NumberKey> {
    appeared.members.iter().map(move |member| NumberKey { community, key: *member })
}

/// The badges that these members hold; `None` where they are more than changes may wait, or where their reasons are too long in all.
async fn held_of(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: Vec<NumberKey>,
) -> Result<Option<Vec<HeldBadge>>, Error> {
    if members.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let find = Statement::in_shard(
        shard,
        "SELECT h.* FROM (
             SELECT rows.community, rows.key AS member, b.kind, b.op_id, b.reason,
                 sum(coalesce(octet_length(b.reason), 0)) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
             FROM $rows
             CROSS JOIN LATERAL (SELECT o.kind, o.op_id, o.reason FROM badge_ops AS o
                 WHERE o.shard = $1 AND o.community = rows.community AND o.member = rows.key
                     AND o.is_badge AND o.revoked_at IS NULL
                 ORDER BY o.at, o.op_id LIMIT $limit) AS b
             LIMIT $limit) AS h
         WHERE h.bytes - coalesce(octet_length(h.reason), 0) <= $2",
    )
    .bind::<BigInt, _>(MAX_REASONS);
    let (held, more) = statement::page(connection, find.rows(members), Limit::<MAX_WAITING>::MAX).await?;
    let is_too_long = held.last().is_some_and(|last: &HeldBadge| last.bytes > MAX_REASONS);
    Ok((!more && !is_too_long).then_some(held))
}

/// Waits for whoever publishes changes of this community, and lets nobody publish any until the transaction ends. It comes before all
/// [other locks](super::lock): a publisher takes long, and waits for rows that others have removed.
pub(crate) async fn claim(connection: &mut AsyncPgConnection, tenant: Tenant) -> Result<(), Error> {
    let claim = Statement::in_community(
        tenant,
        "INSERT INTO changes_published AS p (shard, community)
         SELECT here.shard, $2 FROM shards AS here WHERE here.shard = $1
         ON CONFLICT (shard, community) DO UPDATE SET number = p.number",
    );
    statement::execute(connection, claim).await?;
    Ok(())
}

/// Removes names and reasons from the waiting changes of a person who is erased, which are [claimed](claim). The ids stay, by which
/// followers drop the person; a name becomes what a member without one is called (`Nym::of_user`).
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
             value_from = CASE c.change_type WHEN 3 THEN left(c.user_id, 32) ELSE c.value_from END,
             value_to = CASE c.change_type WHEN 3 THEN left(c.user_id, 32) ELSE c.value_to END
         FROM waiting WHERE c.shard = $1 AND c.ctid = waiting.ctid",
    )
    .bind::<Text, _>(user.to_owned());
    statement::execute(connection, scrub).await?;
    Ok(())
}

impl PendingChange {
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
            value_from: None,
            value_to: None,
            reason: None,
            traceparent: self.traceparent,
        };
        match self.what {
            Detail::Disappeared(why) => row.value_to = Some(why.as_str().to_owned()),
            Detail::Appeared { tier } => row.to_tier = tier,
            Detail::Renamed { from, to } => {
                (row.value_from, row.value_to) = (Some(from.into()), Some(to.into()))
            }
            Detail::Tier { from, to, .. } => (row.from_tier, row.to_tier) = (from, to),
            Detail::Badge { badge, kind, reason, .. } => {
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
        value_from: Option<String> => Nullable<Text>,
        value_to: Option<String> => Nullable<Text>,
        reason: Option<String> => Nullable<Text>,
        traceparent: Option<String> => Nullable<Text>,
    }
}

columns! {
    /// The number of a community's last change.
    struct LastRow {
        community: i32 => Integer,
        number: i64 => BigInt,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_types_are_in_the_order_in_which_one_cause_is_published() {
        let numbers = ChangeType::ALL.map(number_of);
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
        let bits = ChangeType::ALL.into_iter().fold(0, |bits, change_type| bits | bit_of(change_type));
        assert_eq!(bits, 127, "the column's default");
    }
}
