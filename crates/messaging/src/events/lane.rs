//! Works on batches: events applied, then acknowledged; what cannot be applied made dead letters.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt, StreamExt};
use muster_domain::{EventId, EventType, GuildId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::consumer::{ApplyError, ConsumerError, Delivered, Happening, Inner, Outcome};
use super::dead_letter;
use super::envelope;
use super::fault::{AtFault, Faults, Probe, StoreFailure};
use super::reader::{Batch, Item, Stall, Taking, Work};

/// How long the broker may take to keep a dead letter.
const BURY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many are made at once.
const BURIED_AT_ONCE: usize = 32;
/// The longest delay before an event that failed is delivered again.
const MAX_DELAY: Duration = Duration::from_mins(1);
/// The longest pause before a batch is tried again while the store is at fault.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How many events' failures are remembered.
const MAX_FAILED: usize = 10_000;

/// How long a community's events wait before they are tried again that could not be applied for a fault of its rows.
const HOLD: Duration = Duration::from_secs(3);
/// How long a probe that passed is taken for an answer while a batch is being narrowed down.
const PROBE_AGE: Duration = Duration::from_secs(1);

/// One loop that takes a batch, applies it and acknowledges it, then takes the next.
pub(super) struct Lane<A> {
    pub(super) inner: Arc<Inner>,
    pub(super) apply: Arc<A>,
    pub(super) probe: Probe,
    pub(super) taking: Arc<Taking>,
    pub(super) failures: Arc<Failures>,
    pub(super) faults: Arc<Faults>,
    pub(super) stop: CancellationToken,
}

/// How often events failed, by their sequence. The broker's count of deliveries does not tell: it counts those that were
/// put off.
#[derive(Default)]
pub(super) struct Failures(Mutex<BTreeMap<u64, u32>>);

impl Failures {
    /// Counts one more, and answers how many there are.
    fn add(&self, sequence: u64) -> u32 {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MAX_FAILED && !failures.contains_key(&sequence) {
            // The oldest is the likeliest to be gone.
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

/// An event and the message that it came in.
struct Applying {
    delivered: Delivered,
    message: Arc<Message>,
}

/// A batch that is being worked on.
struct Doing<'a> {
    batch: Option<Batch<'a>>,
    /// What is still to be applied, in parts that are applied together.
    parts: Vec<Vec<Applying>>,
    /// Events that failed by themselves, with what the store said. Whose fault that is is found out when the rest is done.
    alone: Vec<(Applying, StoreFailure)>,
    /// When a probe of the store passed last.
    store_works: Option<Instant>,
    /// The communities of which a probe passed.
    communities_work: BTreeSet<GuildId>,
    stalled: Option<Stalled<'a>>,
}

/// What the store's fault has stopped, until it is dropped.
struct Stalled<'a> {
    _reading: Stall<'a>,
    lane: AtFault<'a>,
    tries: u32,
}

impl Doing<'_> {
    /// Every message that is not done with.
    fn messages(&self) -> Vec<Arc<Message>> {
        let alone = self.alone.iter().map(|(event, _)| event);
        self.parts.iter().flatten().chain(alone).map(|event| Arc::clone(&event.message)).collect()
    }
}

impl<A, F> Lane<A>
where
    A: Fn(Vec<Delivered>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), ApplyError>> + Send + 'static,
{
    pub(super) async fn run(self) -> Result<(), ConsumerError> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                batch = self.taking.batch(self.inner.config.batch) => self.work(batch).await,
            }
        }
    }

    async fn work<'a>(&'a self, mut batch: Batch<'a>) {
        let mut events = Vec::with_capacity(batch.items.len());
        let mut unreadable = Vec::new();
        for Item { message, work } in batch.items.drain(..) {
            match work {
                Work::Apply(delivered) => events.push(Applying { delivered, message }),
                Work::Bury(reason) => unreadable.push((message, reason)),
            }
        }
        futures_util::stream::iter(unreadable)
            .for_each_concurrent(BURIED_AT_ONCE, |(message, reason)| async move {
                self.bury(&message, &reason, Outcome::Malformed).await;
            })
            .await;
        if !events.is_empty() {
            self.apply_all(events, batch).await;
        }
    }

    /// Applies a batch. Where it fails, whose fault that is is found out by the rule of [`fault`](super::fault).
    async fn apply_all<'a>(&'a self, events: Vec<Applying>, batch: Batch<'a>) {
        let mut doing = Doing {
            batch: Some(batch),
            parts: vec![events],
            alone: Vec::new(),
            store_works: None,
            communities_work: BTreeSet::new(),
            stalled: None,
        };
        loop {
            let Some(part) = doing.parts.pop() else {
                if doing.alone.is_empty() || self.judge(&mut doing).await.is_break() {
                    return;
                }
                continue;
            };
            let events: Vec<Delivered> = part.iter().map(|event| event.delivered.clone()).collect();
            let started = Instant::now();
            // Among those that the broker is told of while it takes long.
            doing.parts.push(part);
            // A task of its own: a panic stays within, and a write that is under way is never torn.
            let apply = Arc::clone(&self.apply);
            let applying = tokio::spawn(async move { apply(events).await });
            let result = self.meanwhile_held(&doing.messages(), applying).await;
            let result =
                result.unwrap_or_else(|panic| Err(ApplyError::Failed(panic.to_string().as_str().into())));
            let Err(error) = result else {
                let part = doing.parts.pop().unwrap_or_default();
                self.applied(part, started.elapsed(), &mut doing).await;
                continue;
            };
            let stopped = match error {
                ApplyError::Unavailable(failure) => self.stall(failure, &mut doing).await,
                ApplyError::Busy(failure) => self.narrow(failure, true, &mut doing).await,
                ApplyError::Failed(failure) => self.narrow(failure, false, &mut doing).await,
                ApplyError::Poison(id, why) => self.poisoned(id, &why, &mut doing).await,
            };
            if stopped.is_break() {
                return;
            }
        }
    }

    async fn applied(&self, part: Vec<Applying>, took: Duration, doing: &mut Doing<'_>) {
        doing.stalled = None;
        (self.inner.config.observe)(&Happening::Applied { events: part.len(), took });
        let guilds: BTreeSet<&GuildId> = part.iter().map(|event| &event.delivered.event.guild).collect();
        self.faults.work(guilds.iter().copied());
        self.taking.trust(guilds);
        if doing.parts.is_empty() && doing.alone.is_empty() {
            // The next of these communities need not wait for the acknowledgements.
            drop(doing.batch.take());
        }
        self.failures.forget(part.iter().map(|event| event.delivered.sequence));
        acknowledge(&self.inner, part.into_iter().map(|event| event.message).collect()).await;
    }

    /// Buries the event that can never be applied; the others of its part are tried again.
    async fn poisoned<'a>(&'a self, id: EventId, why: &str, doing: &mut Doing<'a>) -> ControlFlow<()> {
        let part = doing.parts.pop().unwrap_or_default();
        let (poison, rest): (Vec<Applying>, Vec<Applying>) =
            part.into_iter().partition(|event| event.delivered.event.id == id);
        let is_there = !poison.is_empty();
        if !rest.is_empty() {
            doing.parts.push(rest);
        }
        for event in poison {
            self.bury(&event.message, why, Outcome::GivenUp).await;
        }
        if is_there { ControlFlow::Continue(()) } else { self.narrow(why.into(), false, doing).await }
    }

    /// Goes one step towards whose fault it is that the last part failed: the store's, one of its communities', or one of its
    /// events' own. Breaks when reading is stopped.
    async fn narrow<'a>(
        &'a self,
        failure: StoreFailure,
        is_busy: bool,
        doing: &mut Doing<'a>,
    ) -> ControlFlow<()> {
        if doing.store_works.is_none_or(|passed| passed.elapsed() >= PROBE_AGE) {
            if let Err(failure) = self.ask(None, doing).await {
                return self.stall(failure, doing).await;
            }
            doing.store_works = Some(Instant::now());
        }
        doing.stalled = None;
        let mut by_community: BTreeMap<GuildId, Vec<Applying>> = BTreeMap::new();
        for event in doing.parts.pop().unwrap_or_default() {
            by_community.entry(event.delivered.event.guild.clone()).or_default().push(event);
        }
        if by_community.len() > 1 {
            doing.parts.extend(by_community.into_values());
            return ControlFlow::Continue(());
        }
        let Some((guild, mut part)) = by_community.pop_first() else { return ControlFlow::Continue(()) };
        if is_busy {
            self.hold(&guild, part, failure);
            return ControlFlow::Continue(());
        }
        if !doing.communities_work.contains(&guild) {
            doing.parts.push(part);
            let asked = self.ask(Some(guild.clone()), doing).await;
            part = doing.parts.pop().unwrap_or_default();
            if let Err(failure) = asked {
                self.hold(&guild, part, failure);
                return ControlFlow::Continue(());
            }
            doing.communities_work.insert(guild);
        }
        if part.len() > 1 {
            let second = part.split_off(part.len() / 2);
            doing.parts.push(second);
            doing.parts.push(part);
        } else {
            doing.alone.extend(part.into_iter().map(|event| (event, failure.clone())));
        }
        ControlFlow::Continue(())
    }

    /// Finds out of events that failed alone, by probes that begin after they did, whether that is their own fault, and if so
    /// counts it. Breaks when reading is stopped.
    async fn judge<'a>(&'a self, doing: &mut Doing<'a>) -> ControlFlow<()> {
        if let Err(failure) = self.ask(None, doing).await {
            doing.parts.extend(doing.alone.drain(..).map(|(event, _)| vec![event]));
            return self.stall(failure, doing).await;
        }
        doing.stalled = None;
        let guilds: BTreeSet<GuildId> =
            doing.alone.iter().map(|(event, _)| event.delivered.event.guild.clone()).collect();
        for guild in guilds {
            let asked = self.ask(Some(guild.clone()), doing).await;
            let (its, others): (Vec<_>, Vec<_>) =
                doing.alone.drain(..).partition(|(event, _)| event.delivered.event.guild == guild);
            doing.alone = others;
            match asked {
                Ok(()) => {
                    for (event, failure) in its {
                        self.failed_alone(event, &failure).await;
                    }
                }
                Err(failure) => self.hold(&guild, its.into_iter().map(|(event, _)| event).collect(), failure),
            }
        }
        ControlFlow::Continue(())
    }

    /// Has the store probed.
    async fn ask(&self, guild: Option<GuildId>, doing: &Doing<'_>) -> Result<(), StoreFailure> {
        // A task of its own, as for what is applied.
        let probing = tokio::spawn((self.probe)(guild));
        let asked = self.meanwhile_held(&doing.messages(), probing).await;
        asked.unwrap_or_else(|panic| Err(panic.to_string().as_str().into()))
    }

    /// Counts that an event failed, and has it delivered again later, or buries it.
    async fn failed_alone(&self, Applying { delivered, message }: Applying, failure: &StoreFailure) {
        let failures = self.failures.add(delivered.sequence);
        if failures >= self.inner.config.max_deliveries {
            self.failures.forget(std::iter::once(delivered.sequence));
            self.bury(&message, &failure.why, Outcome::GivenUp).await;
            return;
        }
        if let Some(line) = self.faults.failed_lines.line() {
            tracing::warn!(
                error = failure.why,
                code = failure.code,
                event.id = %delivered.event.id,
                event.failures = failures,
                left_out = line.left_out,
                "an event could not be applied and is tried again later"
            );
        }
        self.inner.observe(Some(delivered.event.effect.event_type()), Outcome::Delayed);
        self.deliver_again(&message, failures).await;
    }

    /// Puts events of a community back, to be tried again a little later.
    fn hold(&self, guild: &GuildId, events: Vec<Applying>, failure: StoreFailure) {
        self.faults.community(guild, failure);
        for event in &events {
            self.inner.observe(Some(event.delivered.event.effect.event_type()), Outcome::Waiting);
        }
        let items = events
            .into_iter()
            .map(|Applying { delivered, message }| Item { message, work: Work::Apply(delivered) });
        self.taking.hold(guild, items.collect(), Instant::now() + HOLD);
    }

    /// Stalls reading, and waits before what is left of a batch is tried again. Breaks when reading is stopped, having given
    /// the events back.
    async fn stall<'a>(&'a self, failure: StoreFailure, doing: &mut Doing<'a>) -> ControlFlow<()> {
        let tries = match &mut doing.stalled {
            Some(stalled) => {
                stalled.lane.still(failure);
                stalled.tries = stalled.tries.saturating_add(1);
                stalled.tries
            }
            none => {
                let (reading, lane) = (self.taking.stall(), self.faults.store(failure));
                *none = Some(Stalled { _reading: reading, lane, tries: 0 });
                0
            }
        };
        let held = doing.messages();
        for message in &held {
            self.inner.observe(envelope::event_type(&message.subject), Outcome::Waiting);
        }
        let pause =
            Duration::from_millis(250).saturating_mul(2_u32.saturating_pow(tries.min(16))).min(MAX_PAUSE);
        self.meanwhile_held(&held, async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        })
        .await;
        if !self.stop.is_cancelled() {
            return ControlFlow::Continue(());
        }
        for message in held {
            // Lost, it is delivered again all the same, later.
            let _ = message.ack_with(AckKind::Nak(None)).await;
        }
        ControlFlow::Break(())
    }

    /// Does something that may take long, and tells the broker meanwhile that these messages are being worked on.
    async fn meanwhile_held<T>(&self, held: &[Arc<Message>], work: impl Future<Output = T>) -> T {
        let mut signs = tokio::time::interval(self.inner.config.ack_wait / 3);
        signs.tick().await;
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = signs.tick() => {
                    for message in held {
                        // Lost, the event may be delivered a second time, which changes nothing.
                        let _ = message.ack_with(AckKind::Progress).now_or_never();
                    }
                }
            }
        }
    }

    /// Makes a message a dead letter: first the copy, and only when the broker has it, the end of its deliveries.
    async fn bury(&self, message: &Message, reason: &str, why: Outcome) {
        let Ok(info) = message.info() else { return };
        let inner = &self.inner;
        let room = inner.connection.max_payload();
        let created = inner.stream_created;
        let event_type = envelope::event_type(&message.subject);
        match dead_letter::bury(&inner.context, room, created, message, &info, reason, BURY_TIMEOUT).await {
            Ok(()) => {
                if let Some(line) = self.faults.dead_lines.line() {
                    tracing::warn!(
                        reason,
                        event.sequence = info.stream_sequence,
                        // The subject is the publisher's; only what is known of it is repeated.
                        event.r#type = event_type.map_or("unknown", EventType::as_str),
                        left_out = line.left_out,
                        "an event became a dead letter"
                    );
                }
                inner.observe(event_type, why);
                if let Err(error) = message.double_ack_with(AckKind::Term).await {
                    acknowledgement_lost(inner, message, &*error);
                }
            }
            Err(error) => {
                if let Some(line) = self.faults.dead_lines.line() {
                    tracing::error!(
                        error = ?error,
                        event.sequence = info.stream_sequence,
                        left_out = line.left_out,
                        "a dead letter was not kept"
                    );
                }
                inner.observe(event_type, Outcome::NotBuried);
                self.deliver_again(message, u32::try_from(info.delivered).unwrap_or(u32::MAX)).await;
            }
        }
    }

    async fn deliver_again(&self, message: &Message, failures: u32) {
        if let Err(error) = message.ack_with(AckKind::Nak(Some(delay(failures)))).await {
            acknowledgement_lost(&self.inner, message, &*error);
        }
    }
}

/// Acknowledges messages and waits until the broker has the last. It takes a connection's acknowledgements in their order,
/// so it has those before, too; what a broken connection loses is delivered again, and known by its id.
pub(super) async fn acknowledge(inner: &Inner, messages: Vec<Arc<Message>>) {
    let Some((last, others)) = messages.split_last() else { return };
    for message in others {
        if let Err(error) = message.ack().await {
            acknowledgement_lost(inner, message, &*error);
        }
    }
    if let Err(error) = last.double_ack().await {
        acknowledgement_lost(inner, last, &*error);
    }
}

pub(super) fn acknowledgement_lost(
    inner: &Inner,
    message: &Message,
    error: &(dyn std::error::Error + Send + Sync),
) {
    tracing::debug!(error = %error, "an acknowledgement was lost");
    inner.observe(envelope::event_type(&message.subject), Outcome::NotAcknowledged);
}

/// How long an event waits that failed so often: 1 s, 2 s, 4 s and so on up to a minute.
fn delay(failures: u32) -> Duration {
    Duration::from_secs(1)
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16)))
        .min(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deliveries_grow_apart_up_to_a_minute() {
        let seconds: Vec<u64> = (1..=8).map(|n| delay(n).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(delay(u32::MAX), MAX_DELAY);
    }

    #[test]
    fn failures_are_counted_and_remembered_up_to_a_bound() {
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
