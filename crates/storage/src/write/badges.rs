//! Awards and revocations, and the badges that come of them.
//!
//! In the order of time and id, an award takes effect when nothing is held, and the next revocation revokes
//! it. Whether something is held before an operation is told by the operation before it: it is, behind an
//! award, with or without effect. So an operation that arrives late touches at most its own row, the one
//! behind it and the badge that was held: however long a history is, three of its rows are read for each new
//! operation.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{Awarder, BadgeKind, Reason, Shard};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::Error;
use crate::schema::{badge_kinds, badge_ops};
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::tenant::Tenant;
use crate::write::change::Watermark;
use crate::write::lock;

/// An award or a revocation of one member's.
pub(crate) struct Operation {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) kind: BadgeKind,
    pub(crate) at: OffsetDateTime,
    pub(crate) id: Uuid,
    pub(crate) award: bool,
    pub(crate) reason: Option<Reason>,
    pub(crate) by: Option<Awarder>,
}

/// A badge that is held now (sign 1), no longer held (-1), or was revoked before it was written (0), which
/// still makes its kind known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) community: i32,
    pub(crate) member: i64,
    pub(crate) kind: i32,
    pub(crate) awarded_at: OffsetDateTime,
    pub(crate) sign: i32,
    /// The badge.
    pub(crate) id: Uuid,
    /// Why it was awarded, or why it was revoked.
    pub(crate) reason: Option<String>,
}

/// Whose operations, of which kind: community, member and kind.
type Pair = (i32, i64, i32);

/// Operations of one pair, in their order.
type History = BTreeMap<Watermark, Op>;

/// An operation with what has come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Op {
    award: bool,
    /// Whether it is an award that has effect.
    is_badge: bool,
    revoked: Option<Revoked>,
    by: Option<String>,
    reason: Option<String>,
}

/// How a badge was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Revoked {
    at: OffsetDateTime,
    by: Option<String>,
    reason: Option<String>,
}

impl Op {
    fn is_held(&self) -> bool {
        self.is_badge && self.revoked.is_none()
    }

    fn revokes(&self, at: OffsetDateTime) -> Revoked {
        Revoked { at, by: self.by.clone(), reason: self.reason.clone() }
    }
}

/// Records operations and makes the badges agree with them; answers at most three changes of badges for each.
/// The members' stripes are locked. `communities` are all that the transaction will lock: where a kind is
/// new, they are locked here, all at once, because a lock that is held must not lie behind one that is still
/// to be taken.
pub(crate) async fn operate(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &BTreeSet<i32>,
    operations: Vec<Operation>,
) -> Result<Vec<Held>, Error> {
    if operations.is_empty() {
        return Ok(Vec::new());
    }
    let kinds = kinds(connection, shard, communities, &operations).await?;
    let mut added: BTreeMap<Pair, History> = BTreeMap::new();
    for operation in operations {
        let kind = *kinds
            .get(&(operation.community, operation.kind))
            .ok_or_else(|| Error::defect("a kind of badge has no number"))?;
        let op = Op {
            award: operation.award,
            is_badge: false,
            revoked: None,
            by: operation.by.map(String::from),
            reason: operation.reason.map(String::from),
        };
        let history = added.entry((operation.community, operation.member, kind)).or_default();
        if history.insert((operation.at, operation.id), op).is_some() {
            return Err(Error::defect("an operation on a badge comes twice"));
        }
    }
    let mut stored = neighbors(connection, shard, &added).await?;
    let (mut made, mut changed, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for (pair, mut added) in added {
        let before = stored.remove(&pair).unwrap_or_default();
        // Its event comes again after its id was forgotten: it has had its effect.
        added.retain(|watermark, _| !before.contains_key(watermark));
        for (watermark, op) in fold(&before, added)? {
            let stored = before.get(&watermark);
            if stored == Some(&op) {
                continue;
            }
            let sign = i32::from(op.is_held()) - i32::from(stored.is_some_and(Op::is_held));
            if sign != 0 || (stored.is_none() && op.is_badge) {
                let (community, member, kind) = pair;
                let reason = match &op.revoked {
                    Some(revoked) => revoked.reason.clone(),
                    // Nobody revoked it: an award that came late takes its place.
                    None if sign < 0 => None,
                    None => op.reason.clone(),
                };
                let (awarded_at, id) = watermark;
                held.push(Held { community, member, kind, awarded_at, sign, id, reason });
            }
            let rows = if stored.is_none() { &mut made } else { &mut changed };
            rows.push(OpColumns::new(pair, watermark, op));
        }
    }
    write(connection, shard, made, changed).await?;
    Ok(held)
}

/// Adds operations to those stored around them.
fn fold(stored: &History, added: History) -> Result<History, Error> {
    let mut history = stored.clone();
    for (watermark, op) in added {
        add(&mut history, watermark, op)?;
    }
    Ok(history)
}

/// Adds one operation to a history that has the operation before it, the one behind it and, where it revokes,
/// the badge that is held before it.
fn add(history: &mut History, watermark: Watermark, mut op: Op) -> Result<(), Error> {
    let is_held = history.range(..watermark).next_back().is_some_and(|(_, before)| before.award);
    if op.award && !is_held {
        op.is_badge = true;
        if let Some(((at, _), next)) = history.range_mut(watermark..).next() {
            if next.award {
                // This one comes first now, and is revoked by what revoked the other.
                next.is_badge = false;
                op.revoked = next.revoked.take();
            } else {
                op.revoked = Some(next.revokes(*at));
            }
        }
    } else if !op.award && is_held {
        let badge = history.range_mut(..watermark).rev().map(|(_, op)| op).find(|op| op.is_badge);
        let badge = badge.ok_or_else(|| Error::defect("a badge that is held is not there"))?;
        let revoked = badge.revoked.replace(op.revokes(watermark.0));
        if let Some((_, next)) = history.range_mut(watermark..).next()
            && next.award
        {
            // Nothing is held before it any more.
            next.is_badge = true;
            next.revoked = revoked;
        }
    }
    history.insert(watermark, op);
    Ok(())
}

/// The numbers of the operations' kinds. One that is new gets the next number of its community.
///
/// A kind that was only ever revoked has a number, too, because a revocation is kept for an award that
/// arrives later. It has no date of a first award, and no list of kinds has it before then.
async fn kinds(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: &BTreeSet<i32>,
    operations: &[Operation],
) -> Result<HashMap<(i32, BadgeKind), i32>, Error> {
    let mut unknown: BTreeMap<(i32, BadgeKind), Option<OffsetDateTime>> = BTreeMap::new();
    for operation in operations {
        let first = unknown.entry((operation.community, operation.kind.clone())).or_default();
        if operation.award {
            *first = Some(first.map_or(operation.at, |first| first.min(operation.at)));
        }
    }
    let mut known = HashMap::with_capacity(unknown.len());
    take_known(connection, shard, &mut unknown, &mut known).await?;
    if unknown.is_empty() {
        return Ok(known);
    }
    lock::communities(connection, shard, communities).await?;
    // Another may have numbered them before the lock was held.
    take_known(connection, shard, &mut unknown, &mut known).await?;
    if unknown.is_empty() {
        return Ok(known);
    }
    let of: BTreeSet<i32> = unknown.keys().map(|(community, _)| *community).collect();
    if !of.is_subset(communities) {
        return Err(Error::defect("a new kind is of a community that is not to be locked"));
    }
    let mut last = last_kinds(connection, shard, of).await?;
    let mut rows = Vec::with_capacity(unknown.len());
    for ((community, name), first_awarded_at) in unknown {
        let last = last.entry(community).or_default();
        *last =
            last.checked_add(1).ok_or_else(|| Error::defect("a community has too many kinds of badges"))?;
        rows.push(KindColumns { community, kind: *last, name: name.as_str().to_owned(), first_awarded_at });
        known.insert((community, name), *last);
    }
    let insert = "INSERT INTO badge_kinds (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1";
    statement::write(connection, Statement::in_shard(shard, insert), rows).await?;
    Ok(known)
}

/// Moves the kinds that have a number to `known`.
async fn take_known(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    unknown: &mut BTreeMap<(i32, BadgeKind), Option<OffsetDateTime>>,
    known: &mut HashMap<(i32, BadgeKind), i32>,
) -> Result<(), Error> {
    let keys = unknown
        .keys()
        .map(|(community, name)| NameColumns { community: *community, name: name.as_str().to_owned() })
        .collect();
    let find = Statement::in_shard(
        shard,
        "SELECT k.community, k.kind, k.name
         FROM $rows
         CROSS JOIN LATERAL (SELECT k.community, k.kind, k.name FROM badge_kinds AS k
             WHERE k.shard = $1 AND k.community = rows.community AND k.name = rows.name LIMIT 1) AS k",
    );
    let rows: Vec<KindRow> = statement::of_each(connection, find, keys).await?;
    let found: HashMap<(i32, String), i32> =
        rows.into_iter().map(|row| ((row.community, row.name), row.kind)).collect();
    unknown.retain(|(community, name), _| {
        // By its text as it is stored, whatever a later version would make of that.
        let kind = found.get(&(*community, name.as_str().to_owned())).copied();
        known.extend(kind.map(|kind| ((*community, name.clone()), kind)));
        kind.is_none()
    });
    Ok(())
}

/// The highest number of a kind that each of these communities has given.
async fn last_kinds(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    communities: BTreeSet<i32>,
) -> Result<HashMap<i32, i32>, Error> {
    let keys = communities.into_iter().map(|community| CommunityColumns { community }).collect();
    let find = Statement::in_shard(
        shard,
        "SELECT k.community, k.kind
         FROM $rows
         CROSS JOIN LATERAL (SELECT k.community, k.kind FROM badge_kinds AS k
             WHERE k.shard = $1 AND k.community = rows.community ORDER BY k.kind DESC LIMIT 1) AS k",
    );
    let rows: Vec<LastKindRow> = statement::of_each(connection, find, keys).await?;
    Ok(rows.into_iter().map(|row| (row.community, row.kind)).collect())
}

/// What is read of an operation.
macro_rules! op_columns {
    () => {
        "o.at, o.op_id, o.award, o.is_badge, o.revoked_at, o.by, o.reason, o.revoked_by, o.revoke_reason"
    };
}

/// Operations of a new operation's pair.
macro_rules! of_pair {
    () => {
        " FROM badge_ops AS o WHERE o.shard = $1 AND o.community = rows.community AND o.member = rows.member
              AND o.kind = rows.kind AND "
    };
}

/// Of each new operation: the stored one before it, the one behind it or, where it is stored already, itself, and, where it revokes and
/// the one before it is an award without effect, the badge that is held.
async fn neighbors(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    added: &BTreeMap<Pair, History>,
) -> Result<BTreeMap<Pair, History>, Error> {
    let mut rows = Vec::new();
    for ((community, member, kind), history) in added {
        rows.extend(history.iter().map(|((at, op_id), op)| PlaceColumns {
            community: *community,
            member: *member,
            kind: *kind,
            at: *at,
            op_id: *op_id,
            award: op.award,
        }));
    }
    let most = rows.len().saturating_mul(3);
    let find = Statement::in_shard(
        shard,
        concat!(
            "SELECT rows.community, rows.member, rows.kind, near.*
             FROM $rows
             LEFT JOIN LATERAL (SELECT ",
            op_columns!(),
            of_pair!(),
            "(o.at, o.op_id) < (rows.at, rows.op_id) ORDER BY o.at DESC, o.op_id DESC LIMIT 1
             ) AS before ON true
             CROSS JOIN LATERAL (
                 SELECT before.* WHERE before.award IS NOT NULL
                 UNION ALL
                 (SELECT ",
            op_columns!(),
            of_pair!(),
            "(o.at, o.op_id) >= (rows.at, rows.op_id) ORDER BY o.at, o.op_id LIMIT 1)
                 UNION ALL
                 (SELECT ",
            op_columns!(),
            of_pair!(),
            "o.is_badge AND (o.at, o.op_id) < (before.at, before.op_id)
                      AND NOT rows.award AND before.award AND NOT before.is_badge
                  ORDER BY o.at DESC, o.op_id DESC LIMIT 1)
             ) AS near"
        ),
    )
    .rows(rows);
    let rows: Vec<OpRow> = statement::by_keys(connection, find, most).await?;
    let mut stored: BTreeMap<Pair, History> = BTreeMap::new();
    for row in rows {
        let (by, reason) = (row.revoked_by, row.revoke_reason);
        let op = Op {
            award: row.award,
            is_badge: row.is_badge,
            revoked: row.revoked_at.map(|at| Revoked { at, by, reason }),
            by: row.by,
            reason: row.reason,
        };
        stored.entry((row.community, row.member, row.kind)).or_default().insert((row.at, row.op_id), op);
    }
    Ok(stored)
}

/// Writes new operations, and the changed effect of stored ones.
async fn write(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    made: Vec<OpColumns>,
    changed: Vec<OpColumns>,
) -> Result<(), Error> {
    let insert = "INSERT INTO badge_ops (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1";
    statement::write(connection, Statement::in_shard(shard, insert), made).await?;
    // Each is there. An upsert finds it by its key whatever the planner believes of the table.
    let update = "INSERT INTO badge_ops (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1
         ON CONFLICT (shard, community, member, kind, at, op_id) DO UPDATE SET
             is_badge = excluded.is_badge, revoked_at = excluded.revoked_at, revoked_by = excluded.revoked_by,
             revoke_reason = excluded.revoke_reason";
    statement::write(connection, Statement::in_shard(shard, update), changed).await?;
    Ok(())
}

/// Removes a person's id as the awarder of others' badges: from all of them, or those awarded or revoked up
/// to `until`. Every stripe of the community is locked.
pub(crate) async fn forget_awarder(
    connection: &mut AsyncPgConnection,
    tenant: Tenant,
    id: &str,
    until: Option<OffsetDateTime>,
) -> Result<(), Error> {
    const MENTIONS: [&str; 2] = [
        // The badges are read once for each member and kind that the person revoked, and written by their
        // keys.
        "INSERT INTO badge_ops (shard, community, member, kind, at, op_id, award, is_badge)
         SELECT pair.shard, $2, b.member, b.kind, b.at, b.op_id, true, true
         FROM (SELECT DISTINCT o.shard, o.member, o.kind FROM badge_ops AS o
             WHERE o.shard = $1 AND o.community = $2 AND o.by = $3 AND NOT o.award) AS pair
         CROSS JOIN LATERAL (SELECT b.member, b.kind, b.at, b.op_id FROM badge_ops AS b
             WHERE b.shard = $1 AND b.community = $2 AND b.member = pair.member AND b.kind = pair.kind
                 AND b.is_badge AND b.revoked_by = $3 AND ($4 IS NULL OR b.revoked_at <= $4) OFFSET 0) AS b
         ON CONFLICT (shard, community, member, kind, at, op_id) DO UPDATE SET revoked_by = NULL",
        "UPDATE badge_ops SET by = NULL
         WHERE shard = $1 AND community = $2 AND by = $3 AND ($4 IS NULL OR at <= $4)",
    ];
    for sql in MENTIONS {
        let update = Statement::in_community(tenant, sql)
            .bind::<Text, _>(id.to_owned())
            .bind::<Nullable<Timestamptz>, _>(until);
        statement::execute(connection, update).await?;
    }
    Ok(())
}

columns! {
    struct NameColumns { community: i32 => Integer, name: String => Text }
}

columns! {
    struct CommunityColumns { community: i32 => Integer }
}

columns! {
    struct KindColumns {
        community: i32 => Integer,
        kind: i32 => Integer,
        name: String => Text,
        first_awarded_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
    }
}

columns! {
    struct PlaceColumns {
        community: i32 => Integer,
        member: i64 => BigInt,
        kind: i32 => Integer,
        at: OffsetDateTime => Timestamptz,
        op_id: Uuid => SqlUuid,
        award: bool => Bool,
    }
}

columns! {
    struct OpColumns {
        community: i32 => Integer,
        member: i64 => BigInt,
        kind: i32 => Integer,
        at: OffsetDateTime => Timestamptz,
        op_id: Uuid => SqlUuid,
        award: bool => Bool,
        is_badge: bool => Bool,
        revoked_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
        by: Option<String> => Nullable<Text>,
        reason: Option<String> => Nullable<Text>,
        revoked_by: Option<String> => Nullable<Text>,
        revoke_reason: Option<String> => Nullable<Text>,
    }
}

impl OpColumns {
    fn new((community, member, kind): Pair, (at, op_id): Watermark, op: Op) -> Self {
        let (revoked_at, revoked_by, revoke_reason) =
            op.revoked.map_or((None, None, None), |revoked| (Some(revoked.at), revoked.by, revoked.reason));
        let Op { award, is_badge, by, reason, .. } = op;
        Self {
            community,
            member,
            kind,
            at,
            op_id,
            award,
            is_badge,
            revoked_at,
            by,
            reason,
            revoked_by,
            revoke_reason,
        }
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = badge_kinds)]
struct KindRow {
    community: i32,
    kind: i32,
    name: String,
}

#[derive(QueryableByName)]
#[diesel(table_name = badge_kinds)]
struct LastKindRow {
    community: i32,
    kind: i32,
}

#[derive(QueryableByName)]
#[diesel(table_name = badge_ops)]
struct OpRow {
    community: i32,
    member: i64,
    kind: i32,
    at: OffsetDateTime,
    op_id: Uuid,
    award: bool,
    is_badge: bool,
    revoked_at: Option<OffsetDateTime>,
    by: Option<String>,
    reason: Option<String>,
    revoked_by: Option<String>,
    revoke_reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watermark(at: i64, id: u128) -> Watermark {
        (OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(at), Uuid::from_u128(id))
    }

    /// An operation that says itself when it was.
    fn op(watermark: Watermark, award: bool) -> Op {
        let by = Some(format!("by {}", watermark.1));
        Op { award, is_badge: false, revoked: None, by, reason: Some(watermark.0.to_string()) }
    }

    /// The whole history, told from its start.
    fn whole(operations: impl IntoIterator<Item = (Watermark, bool)>) -> History {
        let mut history: History =
            operations.into_iter().map(|(watermark, award)| (watermark, op(watermark, award))).collect();
        let mut held = None;
        for watermark in history.keys().copied().collect::<Vec<_>>() {
            match (history[&watermark].award, held) {
                (true, None) => {
                    history.get_mut(&watermark).unwrap().is_badge = true;
                    held = Some(watermark);
                }
                (false, Some(badge)) => {
                    let revoked = history[&watermark].revokes(watermark.0);
                    history.get_mut(&badge).unwrap().revoked = Some(revoked);
                    held = None;
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        history
    }

    /// What [`neighbors`] reads.
    fn around(stored: &History, added: &History) -> History {
        let mut read = History::new();
        let mut take = |op: Option<(&Watermark, &Op)>| {
            read.extend(op.map(|(watermark, op)| (*watermark, op.clone())));
        };
        for (watermark, op) in added {
            let before = stored.range(..watermark).next_back();
            take(before);
            take(stored.range(watermark..).next());
            if let Some((at, before)) = before
                && !op.award
                && before.award
                && !before.is_badge
            {
                take(stored.range(..at).rev().find(|(_, op)| op.is_badge));
            }
        }
        read
    }

    fn held(history: &History) -> usize {
        history.values().filter(|op| op.is_held()).count()
    }

    /// Adds operations to a stored history as [`operate`] does, and checks that few rows are read and fewer
    /// change.
    fn added(stored: &History, operations: &[(Watermark, bool)]) -> History {
        let added: History =
            operations.iter().map(|(watermark, award)| (*watermark, op(*watermark, *award))).collect();
        let before = around(stored, &added);
        assert!(before.len() <= 3 * added.len());
        let mut history = stored.clone();
        history.extend(fold(&before, added).unwrap());
        history
    }

    #[test]
    fn an_award_has_effect_once_and_the_next_revocation_revokes_it() {
        let history = whole([]);
        let history =
            added(&history, &[(watermark(1, 1), true), (watermark(2, 2), true), (watermark(3, 3), false)]);
        let history = added(&history, &[(watermark(4, 4), false)]);
        let badges: Vec<_> = history.iter().filter(|(_, op)| op.is_badge).collect();
        assert_eq!(badges.len(), 1);
        let revoked = badges[0].1.revoked.clone().unwrap();
        assert_eq!((*badges[0].0, revoked.at), (watermark(1, 1), watermark(3, 3).0));
        assert_eq!(
            (revoked.by, revoked.reason),
            (history[&watermark(3, 3)].by.clone(), op(watermark(3, 3), false).reason)
        );
        assert_eq!(held(&history), 0);
    }

    #[test]
    fn a_late_badge_operation_takes_effect_from_others_and_gives_it() {
        let stored = whole([(watermark(2, 2), true), (watermark(4, 4), true), (watermark(6, 6), false)]);
        let earlier = added(&stored, &[(watermark(1, 1), true)]);
        assert!(earlier[&watermark(1, 1)].is_badge && !earlier[&watermark(2, 2)].is_badge);
        assert_eq!(earlier[&watermark(1, 1)].revoked.as_ref().unwrap().at, watermark(6, 6).0);
        let parted = added(&stored, &[(watermark(3, 3), false)]);
        assert_eq!(parted[&watermark(2, 2)].revoked.as_ref().unwrap().at, watermark(3, 3).0);
        assert_eq!(parted[&watermark(4, 4)].revoked.as_ref().unwrap().at, watermark(6, 6).0);
    }

    #[test]
    fn a_history_that_is_not_whole_is_a_defect() {
        let before = History::from([(watermark(1, 1), op(watermark(1, 1), true))]);
        let revocation = History::from([(watermark(2, 2), op(watermark(2, 2), false))]);
        assert!(matches!(fold(&before, revocation), Err(Error::Defect(_))));
    }

    proptest! {
        #[test]
        fn however_operations_arrive_the_badges_are_those_of_their_order(
            arrivals in proptest::collection::vec(
                proptest::collection::btree_map((0..12_i64, 0..4_u128), any::<bool>(), 1..8),
                1..8,
            )
        ) {
            let mut operations: BTreeMap<Watermark, bool> = BTreeMap::new();
            let mut stored = History::new();
            for arrival in arrivals {
                let new: Vec<(Watermark, bool)> = arrival
                    .into_iter()
                    .map(|((at, id), award)| (watermark(at, id), award))
                    .filter(|(watermark, _)| !operations.contains_key(watermark))
                    .collect();
                stored = added(&stored, &new);
                operations.extend(new);
                prop_assert_eq!(&stored, &whole(operations.clone()));
            }
        }
    }
}
