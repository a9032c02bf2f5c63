//! Applies batches of events and acknowledges them. Events that can never be applied become dead letters.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Message;
use futures_util::StreamExt;
use muster_domain::{Event, EventId, EventType, GuildId};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead_letter::publish_dead_letter;
use super::delivery::{Item, TakenEvent};
use super::durable::Durable;
use super::error::ConsumerError;
use super::fault::{Faults, Probe, StoreFailure, WaitingLane};
use super::outcome::{ApplyError, ConsumerEvent, Delivered, Outcome};
use super::shared_queue::{Batch, SharedQueue, Stall};
use super::subjects::event_type;

/// How many dead letters of a batch are published at once.
const DEAD_LETTERS_AT_ONCE: usize = 32;
/// The longest pause before a batch is retried while the store is at fault.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// The most events whose failures are remembered.
const MAX_FAILED: usize = 10_000;
/// How long a community's events wait before they are retried when its rows are at fault.
const COMMUNITY_PAUSE: Duration = Duration::from_secs(3);
/// How long a batch may take until the store is probed beside it, and from one such probe to the next.
const SLOW: Duration = Duration::from_millis(1500);
/// Into how many parts, at most, a failed part is split. With two, a single bad event takes somewhat fewer attempts, but nearly twice
/// as many are needed where all events fail.
const PARTS: usize = 8;
/// How long a successful probe of the store counts while a batch is narrowed down.
const PROBE_MAX_AGE: Duration = Duration::from_secs(1);

/// A loop that takes a batch, applies it, acknowledges it, and takes the next.
pub(super) struct Lane<A> {
    pub(super) durable: Arc<Durable>,
    pub(super) apply: Arc<A>,
    pub(super) probe: Probe,
    pub(super) queue: Arc<SharedQueue>,
    pub(super) failures: Arc<Failures>,
    pub(super) faults: Arc<Faults>,
    pub(super) stop: CancellationToken,
}

/// How often events failed, by their sequence. The broker's count of deliveries is another: it includes deferrals.
#[derive(Default)]
pub(super) struct Failures(Mutex<BTreeMap<u64, u32>>);

impl Failures {
    /// Counts one more, and returns how many there are.
    fn add(&self, sequence: u64) -> u32 {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MAX_FAILED && !failures.contains_key(&sequence) {
            // The oldest is the most likely to be gone.
            failures.pop_first();
        }
        let count = failures.entry(sequence).or_insert(0);
        *count = count.saturating_add(1);
        *count
    }

    fn forget(&self, sequences: impl Iterator<Item = u64>) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.is_empty() {
            for sequence in sequences {
                failures.remove(&sequence);
            }
        }
    }
}

/// The state of a batch.
struct Work<'a> {
    /// Dropped when its events are applied, so that other lanes may take those communities.
    batch: Option<Batch<'a>>,
    /// Events still to be applied, in parts that are applied together.
    parts: Vec<Vec<TakenEvent>>,
    /// Events that failed alone, with the store's error. What is at fault is decided when the rest is done.
    failed_alone: Vec<(TakenEvent, StoreFailure)>,
    /// When the last successful probe of the store began to count.
    store_probed: Option<Instant>,
    /// The communities whose probe succeeded.
    communities_probed: BTreeSet<GuildId>,
    /// How long the last attempt took, and the communities whose events failed together after long.
    took: Duration,
    slow: BTreeSet<GuildId>,
    stalled: Option<Stalled<'a>>,
}

/// What waits for the store, until it is dropped.
struct Stalled<'a> {
    _reader: Stall<'a>,
    lane: WaitingLane<'a>,
    retries: u32,
}

impl Work<'_> {
    /// The messages of all events that are not finished.
    fn messages(&self) -> Vec<Arc<Message>> {
        let alone = self.failed_alone.iter().map(|(event, _)| event);
        self.parts.iter().flatten().chain(alone).map(|event| Arc::clone(&event.message)).collect()
    }
}

impl<A, F> Lane<A>
where
    A: Fn(Vec<Delivered>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), ApplyError>> + Send + 'static,
{
    pub(super) async fn run(self) -> Result<(), ConsumerError> {
        let max_items = self.durable.config.batch.clamp(1, Event::MAX_BATCH.into());
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                batch = self.queue.take_batch(max_items) => self.process(batch).await,
            }
        }
    }

    async fn process<'a>(&'a self, mut batch: Batch<'a>) {
        let mut events = Vec::with_capacity(batch.items.len());
        let mut malformed = Vec::new();
        for item in batch.items.drain(..) {
            match item {
                Item::Event(event) => events.push(event),
                Item::Malformed { message, reason } => malformed.push((message, reason)),
            }
        }
        // Neither waits for the other: dead letters take long while their stream has no leader. Until they are stored, the batch's
        // communities have this lane.
        let (released, held) = if malformed.is_empty() { (Some(batch), None) } else { (None, Some(batch)) };
        let dead_lettering =
            self.for_each_message(malformed, Vec::new(), |message, reason: String| async move {
                self.make_dead_letter(&message, &reason, Outcome::Malformed).await;
            });
        let applying = async {
            if !events.is_empty() {
                self.apply_all(events, released).await;
            }
        };
        tokio::join!(dead_lettering, applying);
        drop(held);
    }

    /// Runs the action on each message, several at once. Meanwhile sends progress acknowledgements for those that are not done, and
    /// for `held`.
    async fn for_each_message<T, G: Future<Output = ()>>(
        &self,
        items: Vec<(Arc<Message>, T)>,
        held: Vec<Arc<Message>>,
        act: impl Fn(Arc<Message>, T) -> G,
    ) {
        let messages = items.iter().map(|(message, _)| Arc::clone(message));
        let unfinished = Mutex::new(messages.chain(held).collect::<Vec<_>>());
        let lock = || unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        let acting =
            futures_util::stream::iter(items).for_each_concurrent(DEAD_LETTERS_AT_ONCE, |(message, item)| {
                let acting = act(Arc::clone(&message), item);
                async move {
                    acting.await;
                    lock().retain(|other| !Arc::ptr_eq(other, &message));
                }
            });
        tokio::select! {
            () = acting => {}
            never = self.durable.acks.send_progress_acks(|| lock().clone()) => match never {},
        }
    }

    /// Applies a batch. If that fails, finds out what is at fault by the rule of [`fault`](super::fault).
    async fn apply_all<'a>(&'a self, events: Vec<TakenEvent>, batch: Option<Batch<'a>>) {
        let mut work = Work {
            batch,
            parts: vec![events],
            failed_alone: Vec::new(),
            store_probed: None,
            communities_probed: BTreeSet::new(),
            took: Duration::ZERO,
            slow: BTreeSet::new(),
            stalled: None,
        };
        loop {
            let Some(part) = work.parts.pop() else {
                if work.failed_alone.is_empty() || self.judge_failed_alone(&mut work).await.is_break() {
                    return;
                }
                continue;
            };
            let events: Vec<Delivered> = part.iter().map(|event| event.delivered.clone()).collect();
            let started = Instant::now();
            // So that progress is reported on it, too.
            work.parts.push(part);
            // A task of its own: a panic stays within, and a write that has begun is never cancelled.
            let apply = Arc::clone(&self.apply);
            let applying = tokio::spawn(async move { apply(events).await });
            let applying = self.watched(applying, work.stalled.is_some());
            let result = self.durable.acks.with_progress_acks(&work.messages(), applying).await;
            let result =
                result.unwrap_or_else(|panic| Err(ApplyError::Failed(panic.to_string().as_str().into())));
            work.took = started.elapsed();
            let Err(error) = result else {
                let part = work.parts.pop().unwrap_or_default();
                self.applied(part, &mut work).await;
                continue;
            };
            let stopped = match error {
                ApplyError::Unavailable(failure) => self.wait_for_store(failure, &mut work).await,
                ApplyError::Busy(failure) => self.narrow_down(failure, true, &mut work).await,
                ApplyError::Failed(failure) => self.narrow_down(failure, false, &mut work).await,
                ApplyError::Poison(id, why) => self.remove_poison(id, &why, &mut work).await,
            };
            if stopped.is_break() {
                return;
            }
        }
    }

    /// Waits for a batch. While it takes long, the store is probed beside it: if the probe fails, the store is at fault until the
    /// batch ends. A lock on a table or a commit that hangs keep a batch waiting for much longer than they may stay unnoticed.
    async fn watched<T>(&self, mut applying: JoinHandle<T>, is_stalled: bool) -> Result<T, JoinError> {
        let mut stalled = None;
        loop {
            let probing = async {
                if is_stalled || stalled.is_some() {
                    return std::future::pending().await;
                }
                tokio::time::sleep(SLOW).await;
                // A task of its own: one that has begun is never cancelled.
                let probed = tokio::spawn((self.probe)(None)).await;
                probed.unwrap_or_else(|panic| Err(panic.to_string().as_str().into()))
            };
            tokio::select! {
                biased;
                applied = &mut applying => return applied,
                probed = probing => if let Err(failure) = probed {
                    stalled = Some((self.queue.stall(), self.faults.store_failed(failure)));
                },
            }
        }
    }

    async fn applied(&self, part: Vec<TakenEvent>, work: &mut Work<'_>) {
        work.stalled = None;
        (self.durable.config.observe)(&ConsumerEvent::Applied { events: part.len(), took: work.took });
        let guilds: BTreeSet<&GuildId> = part.iter().map(|event| &event.delivered.event.guild).collect();
        self.faults.recovered(guilds.iter().copied());
        // One of which so many are too many is by itself until a batch of it passes whole.
        self.queue.recovered(guilds.difference(&work.slow.iter().collect()).copied());
        if work.parts.is_empty() && work.failed_alone.is_empty() {
            // The next events of these communities need not wait for the acknowledgements.
            drop(work.batch.take());
        }
        self.failures.forget(part.iter().map(|event| event.delivered.sequence));
        self.durable.acks.ack(part.into_iter().map(|event| event.message).collect()).await;
    }

    /// Makes the event a dead letter that can never be applied; the others of its part are retried.
    async fn remove_poison<'a>(&'a self, id: EventId, why: &str, work: &mut Work<'a>) -> ControlFlow<()> {
        let mut rest = work.parts.pop().unwrap_or_default();
        let poison: Vec<TakenEvent> = rest.extract_if(.., |event| event.delivered.event.id == id).collect();
        let is_there = !poison.is_empty();
        if !rest.is_empty() {
            work.parts.push(rest);
        }
        let poison = poison.into_iter().map(|event| (event.message, ())).collect();
        self.for_each_message(poison, work.messages(), |message, ()| async move {
            self.make_dead_letter(&message, why, Outcome::GivenUp).await;
        })
        .await;
        if is_there { ControlFlow::Continue(()) } else { self.narrow_down(why.into(), false, work).await }
    }

    /// Takes one step towards what made the last part fail: the store, one of its communities, or one of its
    /// events. Breaks when the consumer is stopped.
    async fn narrow_down<'a>(
        &'a self,
        failure: StoreFailure,
        is_busy: bool,
        work: &mut Work<'a>,
    ) -> ControlFlow<()> {
        if work.store_probed.is_none_or(|probed| probed.elapsed() >= PROBE_MAX_AGE) {
            if let Err(failure) = self.probe(None, work).await {
                return self.wait_for_store(failure, work).await;
            }
            work.store_probed = Some(Instant::now());
        }
        work.stalled = None;
        let mut by_community: BTreeMap<GuildId, Vec<TakenEvent>> = BTreeMap::new();
        for event in work.parts.pop().unwrap_or_default() {
            by_community.entry(event.delivered.event.guild.clone()).or_default().push(event);
        }
        if by_community.len() > 1 {
            work.parts.extend(by_community.into_values());
            return ControlFlow::Continue(());
        }
        let Some((guild, mut part)) = by_community.pop_first() else { return ControlFlow::Continue(()) };
        if is_busy {
            self.pause_community(&guild, part, failure);
            return ControlFlow::Continue(());
        }
        if !work.communities_probed.contains(&guild) {
            work.parts.push(part);
            let probed = self.probe(Some(guild.clone()), work).await;
            part = work.parts.pop().unwrap_or_default();
            if let Err(failure) = probed {
                self.pause_community(&guild, part, failure);
                return ControlFlow::Continue(());
            }
            work.communities_probed.insert(guild);
        }
        if part.len() > 1 {
            if work.took >= SLOW
                && let Some(guild) = part.first().map(|event| event.delivered.event.guild.clone())
                && !work.slow.contains(&guild)
            {
                // Its batches take others' time with them, so they are its own and small for a while.
                self.put_back(&guild, Vec::new(), Duration::ZERO);
                work.slow.insert(guild);
            }
            // A power of PARTS, so that no part in the end is of two or three.
            let mut size = 1;
            while PARTS.saturating_mul(size) < part.len() {
                size = PARTS.saturating_mul(size);
            }
            while part.len() > size {
                work.parts.push(part.split_off(part.len().saturating_sub(size)));
            }
            work.parts.push(part);
        } else {
            work.failed_alone.extend(part.into_iter().map(|event| (event, failure.clone())));
        }
        ControlFlow::Continue(())
    }

    /// Decides by new probes whether events that failed alone are at fault themselves, and if so counts their failure. Breaks
    /// when the consumer is stopped.
    async fn judge_failed_alone<'a>(&'a self, work: &mut Work<'a>) -> ControlFlow<()> {
        if let Err(failure) = self.probe(None, work).await {
            work.parts.extend(work.failed_alone.drain(..).map(|(event, _)| vec![event]));
            return self.wait_for_store(failure, work).await;
        }
        work.stalled = None;
        let guilds: BTreeSet<GuildId> =
            work.failed_alone.iter().map(|(event, _)| event.delivered.event.guild.clone()).collect();
        for guild in guilds {
            let probed = self.probe(Some(guild.clone()), work).await;
            let is_its = |(event, _): &mut (TakenEvent, StoreFailure)| event.delivered.event.guild == guild;
            let its: Vec<_> = work.failed_alone.extract_if(.., is_its).collect();
            match probed {
                Ok(()) => {
                    let its = its.into_iter().map(|(event, why)| (Arc::clone(&event.message), (event, why)));
                    self.for_each_message(its.collect(), work.messages(), |_, (event, failure)| async move {
                        self.count_failure(event, &failure).await;
                    })
                    .await;
                }
                Err(failure) => {
                    self.pause_community(&guild, its.into_iter().map(|(event, _)| event).collect(), failure);
                }
            }
        }
        ControlFlow::Continue(())
    }

    async fn probe(&self, guild: Option<GuildId>, work: &Work<'_>) -> Result<(), StoreFailure> {
        // A task of its own, as for events.
        let probing = tokio::spawn((self.probe)(guild));
        let probed = self.durable.acks.with_progress_acks(&work.messages(), probing).await;
        probed.unwrap_or_else(|panic| Err(panic.to_string().as_str().into()))
    }

    /// Counts that an event failed, and has it delivered again later or makes it a dead letter.
    async fn count_failure(&self, TakenEvent { delivered, message }: TakenEvent, failure: &StoreFailure) {
        let failures = self.failures.add(delivered.sequence);
        if failures >= self.durable.config.max_deliveries {
            self.failures.forget(std::iter::once(delivered.sequence));
            self.make_dead_letter(&message, &failure.why, Outcome::GivenUp).await;
            return;
        }
        if let Some(line) = self.faults.failure_log.line() {
            tracing::warn!(
                error = failure.why,
                code = failure.code,
                event.id = %delivered.event.id,
                event.failures = failures,
                left_out = line.left_out,
                "an event could not be applied and is retried later"
            );
        }
        self.durable.observe(Some(delivered.event.effect.event_type()), Outcome::Retried);
        self.durable.acks.nak_after_failure(&message, failures).await;
    }

    /// Puts events of a community back into the queue, to be retried a little later.
    fn pause_community(&self, guild: &GuildId, events: Vec<TakenEvent>, failure: StoreFailure) {
        self.faults.community_failed(guild, failure);
        for event in &events {
            self.durable.observe(Some(event.delivered.event.effect.event_type()), Outcome::Waiting);
        }
        self.put_back(guild, events, COMMUNITY_PAUSE);
    }

    /// Puts events of a community back, and has none of it taken for this long, and then by itself until a batch passes.
    fn put_back(&self, guild: &GuildId, events: Vec<TakenEvent>, pause: Duration) {
        let acks = &self.durable.acks;
        self.queue.pause(guild, events, Instant::now() + pause, |message| acks.can_defer(message));
    }

    /// Stops reading, and waits before the rest of a batch is retried. Breaks when the consumer is stopped, after the events
    /// were given back.
    async fn wait_for_store<'a>(&'a self, failure: StoreFailure, work: &mut Work<'a>) -> ControlFlow<()> {
        let retries = match &mut work.stalled {
            Some(stalled) => {
                stalled.lane.failed_again(failure);
                stalled.retries = stalled.retries.saturating_add(1);
                stalled.retries
            }
            none => {
                let (reader, lane) = (self.queue.stall(), self.faults.store_failed(failure));
                *none = Some(Stalled { _reader: reader, lane, retries: 0 });
                0
            }
        };
        let messages = work.messages();
        for message in &messages {
            self.durable.observe(event_type(&message.subject), Outcome::Waiting);
        }
        let pause =
            Duration::from_millis(250).saturating_mul(2_u32.saturating_pow(retries.min(16))).min(MAX_PAUSE);
        let pausing = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        };
        self.durable.acks.with_progress_acks(&messages, pausing).await;
        if !self.stop.is_cancelled() {
            return ControlFlow::Continue(());
        }
        self.durable.acks.nak(messages).await;
        ControlFlow::Break(())
    }

    /// Makes a message a dead letter: publishes the copy first, and ends its deliveries only when the broker has stored that.
    async fn make_dead_letter(&self, message: &Message, reason: &str, outcome: Outcome) {
        let Ok(info) = message.info() else { return };
        let event_type = event_type(&message.subject);
        match publish_dead_letter(&self.durable, message, &info, reason).await {
            Ok(()) => {
                if let Some(line) = self.faults.dead_letter_log.line() {
                    tracing::warn!(
                        reason,
                        event.sequence = info.stream_sequence,
                        // The publisher chooses the subject, so only a known type is logged.
                        event.r#type = event_type.map_or("unknown", EventType::as_str),
                        left_out = line.left_out,
                        "an event became a dead letter"
                    );
                }
                self.durable.observe(event_type, outcome);
                self.durable.acks.term(message).await;
            }
            Err(error) => {
                if let Some(line) = self.faults.dead_letter_log.line() {
                    tracing::error!(
                        error = ?error,
                        event.sequence = info.stream_sequence,
                        left_out = line.left_out,
                        "a dead letter could not be stored; its event is retried later"
                    );
                }
                self.durable.observe(event_type, Outcome::DeadLetterFailed);
                let deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
                self.durable.acks.nak_after_failure(message, deliveries).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_per_event_up_to_a_number_of_events() {
        let failures = Failures::default();
        assert_eq!((failures.add(7), failures.add(7), failures.add(8)), (1, 2, 1));
        failures.forget([7].into_iter());
        assert_eq!((failures.add(7), failures.add(8)), (1, 2));
        for sequence in 0..20_000 {
            failures.add(sequence);
        }
        assert_eq!(failures.0.lock().unwrap().len(), MAX_FAILED);
    }
}
