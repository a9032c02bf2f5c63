//! Activity that was added since it was last set.
//!
//! Each addition is kept by itself, since the event that sets the activity may come behind it, however long after. What would otherwise grow
//! with time alone is [folded](fold): additions of more than [`Store::MAX_REMEMBERED`] ago whose events' ids
//! are forgotten become one for each month, and for each year once they are a year old. An event that came again after that would count
//! again, so it is done only where [none can](Store::set_folding).

use std::collections::{BTreeMap, HashMap, HashSet};

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{Activity, Shard};
use time::OffsetDateTime;
use uuid::Uuid;

use super::change::Watermark;
use crate::error::Error;
use crate::schema::activity_adds;
use crate::sql::columns::{columns, rows_in};
use crate::sql::statement::{self, Insertion, Statement};
use crate::store::Store;

/// One addition in this many triggers the folding of its member's additions.
const FOLDED_EVERY: u128 = 31;
/// The most additions of a member that are folded at once.
const MOST_FOLDED: usize = 2000;

columns! {
    /// An addition.
    pub(crate) struct Add {
        community: i32 => Integer,
        member: i64 => BigInt,
        at: OffsetDateTime => Timestamptz,
        event_id: Uuid => SqlUuid,
        amount: i64 => BigInt,
    }
}

columns! {
    #[derive(Clone)]
    struct Set {
        community: i32 => Integer,
        member: i64 => BigInt,
        at: OffsetDateTime => Timestamptz,
        event_id: Uuid => SqlUuid,
    }
}

/// Of members whose activity is set anew: what had been added after that. Additions before it will never count again, and are removed.
pub(crate) async fn added_since(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    set: Vec<((i32, i64), Watermark)>,
) -> Result<HashMap<(i32, i64), Activity>, Error> {
    let set: Vec<Set> = set
        .into_iter()
        .map(|((community, member), (at, event_id))| Set { community, member, at, event_id })
        .collect();
    let sum = Statement::in_shard(
        shard,
        "SELECT rows.community, rows.member, least(sum(a.amount), 9007199254740991)::bigint AS amount
         FROM $rows CROSS JOIN LATERAL (SELECT a.amount FROM activity_adds AS a
             WHERE a.shard = $1 AND a.community = rows.community AND a.member = rows.member
                 AND (a.at, a.event_id) > (rows.at, rows.event_id) OFFSET 0) AS a
         GROUP BY 1, 2",
    );
    let prune = Statement::in_shard(
        shard,
        "DELETE FROM activity_adds AS a
         USING $rows CROSS JOIN LATERAL (SELECT r.ctid FROM activity_adds AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member
                 AND (r.at, r.event_id) < (rows.at, rows.event_id) OFFSET 0) AS row
         WHERE a.shard = $1 AND a.ctid = row.ctid",
    );
    let sums: Vec<SumRow> = statement::of_each(connection, sum, set.clone()).await?;
    statement::write(connection, prune, set).await?;
    Ok(sums.into_iter().map(|row| ((row.community, row.member), Activity::clamp(row.amount))).collect())
}

/// Keeps additions, which the event that sets the activity may still come behind, and answers those that were not kept yet. One
/// is kept already where its event comes again after its id was forgotten: it has counted.
pub(crate) async fn insert(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    mut adds: Vec<Add>,
    insertion: Insertion,
) -> Result<HashSet<((i32, i64), Watermark)>, Error> {
    adds.sort_unstable_by_key(|add| (add.community, add.member, add.at, add.event_id));
    let insert = Statement::in_shard(
        shard,
        "INSERT INTO activity_adds (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
    )
    .guarded(
        insertion,
        " ON CONFLICT (shard, community, member, at, event_id) DO NOTHING RETURNING community, member, at, event_id",
    );
    Ok(match insertion {
        Insertion::Plain => {
            let all = adds.iter().map(|add| ((add.community, add.member), (add.at, add.event_id))).collect();
            statement::write(connection, insert, adds).await?;
            all
        }
        Insertion::Guarded => {
            let rows: Vec<KeptRow> = statement::of_each(connection, insert, adds).await?;
            rows.into_iter().map(|row| ((row.community, row.member), (row.at, row.event_id))).collect()
        }
    })
}

/// For a probe, which is rolled back: inserts additions under a member number that nobody has, and folds them.
pub(crate) async fn try_out(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    (community, member): (i32, i64),
) -> Result<(), Error> {
    let at = OffsetDateTime::UNIX_EPOCH;
    let adds = (0..3).map(|_| Add { community, member, at, event_id: Uuid::new_v4(), amount: 1 }).collect();
    insert(connection, shard, adds, Insertion::Plain).await?;
    fold(connection, shard, vec![(community, member)]).await
}

/// Whether this event's addition triggers folding. The whole id is used, since any part of it may not be random.
pub(crate) fn is_due((_, event_id): Watermark) -> bool {
    event_id.as_u128().is_multiple_of(FOLDED_EVERY)
}

/// Folds old additions of these members, whose stripes are locked: those of more than [`Store::MAX_REMEMBERED`] ago whose ids are forgotten, but a member's
/// first, which says from when on the person is known. A set of a time within a period that comes still later counts all of the period.
///
/// What goes is decided by one statement, and added to what stays: ids are forgotten meanwhile.
pub(crate) async fn fold(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    members: Vec<(i32, i64)>,
) -> Result<(), Error> {
    let age = i64::try_from(Store::MAX_REMEMBERED.as_secs()).map_err(Error::defect)?;
    let has_old = Statement::in_shard(
        shard,
        "SELECT rows.community, rows.member FROM $rows
         CROSS JOIN LATERAL (SELECT FROM activity_adds AS r
             WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member
                 AND r.at < now() - $2 * interval '1 second'
             ORDER BY r.at, r.event_id OFFSET 2 LIMIT 1) AS a",
    )
    .bind::<BigInt, _>(age);
    let members = members.into_iter().map(|(community, member)| Of { community, member }).collect();
    let old: Vec<OfRow> = statement::of_each(connection, has_old, members).await?;
    if old.is_empty() {
        return Ok(());
    }
    let most = old.len().saturating_mul(MOST_FOLDED);
    let old = old.into_iter().map(|row| Of { community: row.community, member: row.member }).collect();
    let take = Statement::in_shard(
        shard,
        "WITH old AS MATERIALIZED (
             SELECT rows.community, rows.member, a.place, a.at, a.event_id,
                 date_trunc(CASE WHEN a.at < now() - interval '1 year' THEN 'year' ELSE 'month' END, a.at, 'UTC') AS period
             FROM $rows
             CROSS JOIN LATERAL (SELECT r.ctid AS place, r.at, r.event_id FROM activity_adds AS r
                 WHERE r.shard = $1 AND r.community = rows.community AND r.member = rows.member
                     AND r.at < now() - $2 * interval '1 second'
                 ORDER BY r.at, r.event_id OFFSET 1 LIMIT $3) AS a
             CROSS JOIN LATERAL (SELECT (floor(extract(epoch FROM a.at) / 86400)::bigint & 63)::smallint AS slot OFFSET 0) AS day
             LEFT JOIN LATERAL (SELECT true AS remembered FROM applied_events AS e
                 WHERE e.shard = $1 AND e.slot = day.slot AND e.community = rows.community
                     AND e.event_id = a.event_id LIMIT 1) AS by_day ON true
             LEFT JOIN LATERAL (SELECT true AS remembered FROM applied_events AS e
                 WHERE e.shard = $1 AND e.slot = 64 AND e.community = rows.community
                     AND e.event_id = a.event_id LIMIT 1) AS late ON true
             WHERE by_day.remembered IS NULL AND late.remembered IS NULL
         ), folded AS MATERIALIZED (
             SELECT o.place, last_value(o.at) OVER period AS at, last_value(o.event_id) OVER period AS event_id,
                 row_number() OVER period < count(*) OVER period AS goes
             FROM old AS o
             WINDOW period AS (PARTITION BY o.community, o.member, o.period ORDER BY o.at, o.event_id
                 ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
         )
         DELETE FROM activity_adds AS a USING folded WHERE a.shard = $1 AND a.ctid = folded.place AND folded.goes
         RETURNING a.community, a.member, folded.at, folded.event_id, a.amount",
    )
    .bind::<BigInt, _>(age)
    .bind::<BigInt, _>(i64::try_from(MOST_FOLDED).map_err(Error::defect)?);
    let taken: Vec<FoldedRow> = statement::by_keys(connection, take.rows(old), most).await?;
    let mut sums: BTreeMap<(i32, i64, OffsetDateTime, Uuid), Activity> = BTreeMap::new();
    for row in taken {
        let sum = sums.entry((row.community, row.member, row.at, row.event_id)).or_default();
        *sum = sum.plus(Activity::clamp(row.amount));
    }
    let sums = sums.into_iter().map(|((community, member, at, event_id), amount)| Add {
        community,
        member,
        at,
        event_id,
        amount: amount.get(),
    });
    let add = concat!(
        "UPDATE activity_adds AS a SET amount = least(a.amount + rows.amount, 9007199254740991) FROM ",
        rows_in!("activity_adds", "member", "at", "event_id"),
        " WHERE a.shard = $1 AND a.ctid = found.ctid"
    );
    statement::write(connection, Statement::in_shard(shard, add), sums.collect()).await?;
    Ok(())
}

#[derive(QueryableByName)]
#[diesel(table_name = activity_adds)]
struct FoldedRow {
    community: i32,
    member: i64,
    at: OffsetDateTime,
    event_id: Uuid,
    amount: i64,
}

columns! {
    struct Of {
        community: i32 => Integer,
        member: i64 => BigInt,
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = activity_adds)]
struct OfRow {
    community: i32,
    member: i64,
}

#[derive(QueryableByName)]
#[diesel(table_name = activity_adds)]
struct KeptRow {
    community: i32,
    member: i64,
    at: OffsetDateTime,
    event_id: Uuid,
}

#[derive(QueryableByName)]
struct SumRow {
    #[diesel(sql_type = Integer)]
    community: i32,
    #[diesel(sql_type = BigInt)]
    member: i64,
    #[diesel(sql_type = BigInt)]
    amount: i64,
}
