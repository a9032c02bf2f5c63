//! Forgetting the ids of events that were applied long ago.

use std::collections::BTreeSet;
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_types::{BigInt, Integer, SmallInt};
use futures_util::FutureExt;
use muster_domain::Shard;

use crate::error::Error;
use crate::schema::applied_events;
use crate::sql::clock;
use crate::sql::columns::columns;
use crate::sql::statement::{self, Statement};
use crate::store::Store;
use crate::write::ids::{LATE_DAYS, SLOTS, day_of, slot_of};

impl Store {
    /// The longest that ids are remembered: with it, and with events of 15 days ago to two days ahead, the days in use have a
    /// partition each.
    pub const MAX_REMEMBERED: Duration = Duration::from_hours(44 * 24);

    /// Forgets the ids of events that were applied longer ago than `age`: those of whole days at once, and of each
    /// shard up to 1000 of those that were old when they came. Returns how many the latter were, which is 0 once
    /// nothing is left to forget. An event that comes again after that would be applied again: `age` is to be well
    /// above how long the stream keeps events.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is, [`Error::OutOfBounds`] when `age` is above [`Self::MAX_REMEMBERED`].
    pub async fn applied_events_prune(&self, age: Duration) -> Result<usize, Error> {
        if age > Self::MAX_REMEMBERED {
            let days = Self::MAX_REMEMBERED.as_secs() / 86_400;
            let why = format!("ids of events are remembered for at most {days} days: give a shorter age");
            return Err(Error::OutOfBounds(why));
        }
        // By the clock that all workers share.
        let now = self.read("applied_events_prune", |connection| clock::now(connection).boxed()).await?;
        let mut unused = unused_slots(day_of(now), age)?;
        let mut late = 0_usize;
        let mut failed = Ok(());
        for shard in Shard::all() {
            // It takes every node.
            if failed.is_ok() {
                failed = self.empty_slots(shard, &mut unused).await;
            }
            match self.prune_late(shard, age).await {
                Ok(pruned) => late = late.saturating_add(pruned),
                // Other shards may lie where all is well.
                Err(error) if error.may_be_of_a_node() => failed = failed.and(Err(error)),
                Err(error) => return Err(error),
            }
        }
        failed.map(|()| late)
    }

    /// Empties the slots that this shard has anything in, for every shard, and takes them out of the set.
    async fn empty_slots(&self, shard: Shard, unused: &mut BTreeSet<i16>) -> Result<(), Error> {
        let find = Statement::in_shard(
            shard,
            "SELECT rows.slot FROM $rows
             CROSS JOIN LATERAL (SELECT FROM applied_events AS a WHERE a.shard = $1 AND a.slot = rows.slot LIMIT 1) AS a",
        )
        .rows(unused.iter().map(|slot| Slot { slot: *slot }).collect());
        let filled: Vec<SlotRow> =
            self.in_shard(shard).by_keys("applied_events_prune", find, unused.len()).await?;
        for SlotRow { slot } in filled {
            unused.remove(&slot);
            let emptied = self.write("applied_events_prune", move |connection| {
                async move {
                    let empty = Statement::shared("SELECT applied_events_empty($1)")
                        .bind::<Integer, _>(i32::from(slot));
                    statement::execute(connection, empty).await?;
                    Ok(())
                }
                .boxed()
            });
            match emptied.await {
                // Somebody reads it, such as a dump: another time.
                Err(error) if error.sqlstate().as_deref() == Some("55P03") => {}
                emptied => emptied?,
            }
        }
        Ok(())
    }

    async fn prune_late(&self, shard: Shard, age: Duration) -> Result<usize, Error> {
        let seconds = i64::try_from(age.as_secs()).map_err(Error::defect)?;
        self.in_shard(shard).write("applied_events_prune", move |connection| {
            async move {
                let prune = Statement::in_shard(
                    shard,
                    "DELETE FROM applied_events WHERE shard = $1 AND slot = 64 AND ctid = ANY(ARRAY(
                         SELECT a.ctid FROM applied_events AS a
                         WHERE a.shard = $1 AND a.slot = 64 AND a.applied_at < now() - $2 * interval '1 second'
                         ORDER BY a.applied_at LIMIT 1000))",
                )
                .bind::<BigInt, _>(seconds);
                Ok(statement::execute(connection, prune).await?)
            }
            .boxed()
        })
        .await
    }
}

/// The slots of days that are not in use. An event has the slot of its own day, of 15 days ago to two days ahead, by whoever's clock; it
/// is remembered for `age` from when it comes.
fn unused_slots(today: i64, age: Duration) -> Result<BTreeSet<i16>, Error> {
    let age_days = i64::try_from(age.as_secs().div_ceil(86_400)).map_err(Error::defect)?;
    let first = today.saturating_sub(LATE_DAYS).saturating_sub(age_days).saturating_sub(1);
    let used = (first..=today.saturating_add(2)).map(slot_of).collect::<Result<BTreeSet<i16>, Error>>()?;
    let all = (0..SLOTS).map(slot_of).collect::<Result<BTreeSet<i16>, Error>>()?;
    Ok(all.difference(&used).copied().collect())
}

columns! {
    struct Slot {
        slot: i16 => SmallInt,
    }
}

#[derive(QueryableByName)]
#[diesel(table_name = applied_events)]
struct SlotRow {
    slot: i16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_may_come_again_keeps_its_slot() {
        let slot = |day| slot_of(day).unwrap();
        for today in [20_000_i64, 20_001, 20_479, 20_480] {
            let unused = unused_slots(today, Store::MAX_REMEMBERED).unwrap();
            assert!((today - 60..=today + 2).all(|day| !unused.contains(&slot(day))));
            assert_eq!(
                unused,
                BTreeSet::from([slot(today + 3)]),
                "a day's slot is emptied before it is used"
            );
            let unused = unused_slots(today, Duration::ZERO).unwrap();
            assert_eq!(unused.len(), 64 - 19);
            assert!((today - 16..=today + 2).all(|day| !unused.contains(&slot(day))));
        }
    }
}
