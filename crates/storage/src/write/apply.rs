//! The exactly-once application of events: their ids and their effects in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use diesel_async::AsyncPgConnection;
use futures_util::FutureExt;
use muster_domain::{CommunityId, Effect, ErasureKey, Event, EventType, GuildId, Shard, Stripe};

use super::change::Changes;
use super::erased::Erased;
use super::{communities, ids, lock, member};
use crate::error::Error;
use crate::sql::statement::Insertion;
use crate::store::Store;
use crate::tenant::ids_of;

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Events that took effect now, by their type.
    pub fresh: BTreeMap<EventType, usize>,
    /// Events that had been applied before, by their type.
    pub duplicates: BTreeMap<EventType, usize>,
}

impl Applied {
    fn add(&mut self, other: Self) {
        for (sum, counts) in [(&mut self.fresh, other.fresh), (&mut self.duplicates, other.duplicates)] {
            for (event_type, count) in counts {
                let sum = sum.entry(event_type).or_default();
                *sum = sum.saturating_add(count);
            }
        }
    }
}

impl Store {
    /// Applies events, each once, whatever their order and however often they come. Those of communities of one shard are applied in one
    /// transaction; on an error, those of some shards may have been applied and those of others not.
    ///
    /// After an error that [is transient](Error::is_transient) it may be unknown whether they were committed; applying
    /// them again finds out by their ids.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the database is, [`Error::Defect`] when an event cannot be applied,
    /// [`Error::OutOfBounds`] when there are more than [`Event::MAX_BATCH`].
    pub async fn events_apply(&self, events: Vec<Event>) -> Result<Applied, Error> {
        if events.len() > usize::from(Event::MAX_BATCH) {
            return Err(Error::OutOfBounds(format!("a batch has at most {} events", Event::MAX_BATCH)));
        }
        let guilds: BTreeSet<GuildId> = events.iter().map(|event| event.guild.clone()).collect();
        let communities = self.communities_ensure(guilds).await?;
        let mut shards: BTreeMap<Shard, Vec<(i32, Event)>> = BTreeMap::new();
        for event in events {
            let named = communities.get(&event.guild);
            let named = named.ok_or_else(|| Error::defect("an ensured community is gone"))?;
            shards.entry(named.tenant.shard).or_default().push((named.tenant.community, event));
        }
        let known = ids_of(communities.values());
        let mut applied = Applied::default();
        for (shard, events) in shards {
            let batch = |insertion| Batch {
                key: self.erasure_key().clone(),
                known: known.clone(),
                shard,
                insertion,
                folds: self.folds(),
            };
            let mut part = self.apply(batch(Insertion::Plain), events.clone()).await;
            if part.as_ref().is_err_and(Error::is_there_already) {
                part = self.apply(batch(Insertion::Guarded), events).await;
            }
            match part {
                Ok(part) => {
                    applied.add(part);
                    self.outbox_hints().wrote(shard);
                }
                Err(error) => {
                    // The database may be another than that which the keys are from.
                    self.forget_keys(&communities).await;
                    return Err(error);
                }
            }
        }
        Ok(applied)
    }

    async fn apply(&self, batch: Batch, events: Vec<(i32, Event)>) -> Result<Applied, Error> {
        self.in_shard(batch.shard)
            .write("events_apply", move |connection| {
                async move {
                    let applied = apply(connection, &batch, events).await;
                    match batch.insertion {
                        Insertion::Plain => applied.map_err(Error::of_plain_insertion),
                        Insertion::Guarded => applied,
                    }
                }
                .boxed()
            })
            .await
    }
}

/// How events of communities of one shard are applied.
pub(super) struct Batch {
    pub(super) key: ErasureKey,
    /// The ids of the communities, as far as the caller has them.
    pub(super) known: BTreeMap<i32, CommunityId>,
    pub(super) shard: Shard,
    pub(super) insertion: Insertion,
    /// Whether old additions to activity are folded.
    pub(super) folds: bool,
}

/// Applies a batch of events.
pub(super) async fn apply(
    connection: &mut AsyncPgConnection,
    batch: &Batch,
    events: Vec<(i32, Event)>,
) -> Result<Applied, Error> {
    let Batch { key, known, shard, insertion, folds } = batch;
    let (shard, insertion) = (*shard, *insertion);
    let mut applied = Applied::default();
    let mut stripes = BTreeSet::new();
    for (community, event) in &events {
        *applied.duplicates.entry(event.effect.event_type()).or_default() += 1;
        if let Effect::Member { user, .. } = &event.effect {
            stripes.insert((*community, Stripe::of(user)));
        }
    }
    let arrived: BTreeSet<i32> = events.iter().map(|(community, _)| *community).collect();
    let held = lock::stripes(connection, shard, &stripes).await?;
    let events = ids::record(connection, shard, events, insertion).await?;
    if events.is_empty() {
        // A synchronous standby may not have yet what was committed before. The commit of nothing waits for none; a lock of a row is
        // something, and stripes are rows.
        if stripes.is_empty() {
            lock::communities(connection, shard, &arrived).await?;
        }
        return Ok(applied);
    }
    let erased = Erased::find(connection, key, shard, &events).await?;
    let mut touched = BTreeSet::new();
    let mut changes = Changes::default();
    for (community, event) in events {
        let event_type = event.effect.event_type();
        *applied.fresh.entry(event_type).or_default() += 1;
        if let Some(duplicates) = applied.duplicates.get_mut(&event_type) {
            *duplicates = duplicates.saturating_sub(1);
        }
        touched.insert(community);
        if let Some(event) = erased.admit(community, event) {
            changes.take(community, event);
        }
    }
    for ((community, user), change) in &mut changes.members {
        change.was_erased = erased.holds(*community, user.as_str());
    }
    let of_members = changes.members.into_iter().collect();
    let members = member::change(connection, shard, &touched, of_members, insertion).await?;
    if *folds {
        members.fold_additions(connection, shard).await?;
    }
    let locked = lock::communities(connection, shard, &touched).await?;
    lock::check(&locked, known)?;
    communities::change(connection, shard, &locked, &changes.communities).await?;
    members.write_shared(connection, shard, &held, &locked).await?;
    Ok(applied)
}
