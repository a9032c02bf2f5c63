//! The ids of applied events: an event has one effect, however often it arrives.
//!
//! An id lies in the partition of its event's own day, modulo [`SLOTS`]; that of an event which is old when it first comes lies in one of
//! its own. A repetition carries the same time. It may have grown old in between, so an event that is about as old as that is looked for
//! in both.

use std::collections::HashSet;

use diesel::QueryableByName;
use diesel::sql_types::{Integer, Nullable, SmallInt, Timestamptz, Uuid as SqlUuid};
use diesel_async::AsyncPgConnection;
use muster_domain::{Event, Shard};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::error::Error;
use crate::schema::applied_events;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Insertion, Statement};

/// The partitions of days.
pub(crate) const SLOTS: i64 = 64;
/// The partition of events that are old when they first come.
pub(crate) const LATE_SLOT: i16 = 64;
/// From which age on an event is old, in days.
pub(crate) const LATE_DAYS: i64 = 15;
const LATE: Duration = Duration::days(LATE_DAYS);
/// By how much the clocks of two workers may differ.
const CLOCKS: Duration = Duration::days(1);

columns! {
    struct Id {
        slot: i16 => SmallInt,
        community: i32 => Integer,
        event_id: Uuid => SqlUuid,
        applied_at: Option<OffsetDateTime> => Nullable<Timestamptz>,
    }
}

columns! {
    struct Seen {
        slot: i16 => SmallInt,
        community: i32 => Integer,
        event_id: Uuid => SqlUuid,
    }
}

/// The partition of a day, counted from 1970.
pub(crate) fn slot_of(day: i64) -> Result<i16, Error> {
    i16::try_from(day.rem_euclid(SLOTS)).map_err(Error::defect)
}

/// The day of a time, counted from 1970.
pub(crate) const fn day_of(at: OffsetDateTime) -> i64 {
    at.unix_timestamp().div_euclid(86_400)
}

/// Records the events' ids, and answers those that were not recorded before.
pub(crate) async fn record(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    mut arrived: Vec<(i32, Event)>,
    insertion: Insertion,
) -> Result<Vec<(i32, Event)>, Error> {
    let now = OffsetDateTime::now_utc();
    let mut ids: Vec<Id> = Vec::with_capacity(arrived.len());
    let mut perhaps_seen = Vec::new();
    for (community, event) in &arrived {
        let (date, event_id) = (event.at.date(), event.id.get());
        let (age, of_day) = (now - date, slot_of(day_of(date))?);
        let is_late = age > LATE;
        if age > LATE - CLOCKS {
            let other = if is_late { of_day } else { LATE_SLOT };
            perhaps_seen.push(Seen { slot: other, community: *community, event_id });
        }
        ids.push(Id {
            slot: if is_late { LATE_SLOT } else { of_day },
            community: *community,
            event_id,
            applied_at: is_late.then_some(now),
        });
    }
    let seen = seen(connection, shard, perhaps_seen).await?;
    // Of one id the first, as of the events below, whatever days its copies are of.
    let mut first = HashSet::with_capacity(ids.len());
    ids.retain(|id| {
        let id = (id.community, id.event_id);
        !seen.contains(&id) && first.insert(id)
    });
    ids.sort_unstable_by_key(|id| (id.slot, id.community, id.event_id));
    let record = Statement::in_shard(
        shard,
        "INSERT INTO applied_events (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1",
    )
    .guarded(
        insertion,
        " ON CONFLICT (shard, slot, community, event_id) DO NOTHING RETURNING community, event_id",
    );
    let mut recorded: HashSet<(i32, Uuid)> = match insertion {
        Insertion::Plain => {
            expect(ids.len(), statement::write(connection, record, ids).await?)?;
            first
        }
        Insertion::Guarded => {
            let recorded: Vec<RecordedRow> = statement::of_each(connection, record, ids).await?;
            recorded.into_iter().map(|row| (row.community, row.event_id)).collect()
        }
    };
    // Removing what was taken leaves out a second copy within the batch.
    arrived.retain(|(community, event)| recorded.remove(&(*community, event.id.get())));
    Ok(arrived)
}

/// For a probe, which is rolled back: writes an id into every partition.
pub(crate) async fn try_out(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    community: i32,
) -> Result<(), Error> {
    let slots = (0..SLOTS).map(slot_of).chain([Ok(LATE_SLOT)]).collect::<Result<Vec<i16>, Error>>()?;
    let applied_at = Some(OffsetDateTime::now_utc());
    let id = |slot| Id { slot, community, event_id: Uuid::new_v4(), applied_at };
    let record = "INSERT INTO applied_events (shard, $names) SELECT here.shard, rows.* FROM shards AS here CROSS JOIN $rows WHERE here.shard = $1";
    let ids: Vec<Id> = slots.into_iter().map(id).collect();
    expect(ids.len(), statement::write(connection, Statement::in_shard(shard, record), ids).await?)
}

/// Fails where fewer ids were written than given. Every insertion takes its shard from the table of shards: without its row all of them
/// would write nothing, and the events would be acknowledged all the same.
fn expect(ids: usize, written: usize) -> Result<(), Error> {
    match written == ids {
        true => Ok(()),
        false => Err(Error::defect("the table `shards` lacks a row: check that it has those of 0 to 15")),
    }
}

/// Which of these ids are recorded.
async fn seen(
    connection: &mut AsyncPgConnection,
    shard: Shard,
    ids: Vec<Seen>,
) -> Result<HashSet<(i32, Uuid)>, Error> {
    let find = Statement::in_shard(
        shard,
        "SELECT e.community, e.event_id FROM $rows CROSS JOIN LATERAL (SELECT r.community, r.event_id
             FROM applied_events AS r
             WHERE r.shard = $1 AND r.slot = rows.slot AND r.community = rows.community
                 AND r.event_id = rows.event_id LIMIT 1) AS e",
    );
    let rows: Vec<RecordedRow> = statement::of_each(connection, find, ids).await?;
    Ok(rows.into_iter().map(|row| (row.community, row.event_id)).collect())
}

#[derive(QueryableByName)]
#[diesel(table_name = applied_events)]
struct RecordedRow {
    community: i32,
    event_id: Uuid,
}
