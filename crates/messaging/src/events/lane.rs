//! Works on batches: events applied, then acknowledged; what cannot be applied made dead letters.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt, StreamExt};
use muster_domain::EventType;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::consumer::{ApplyError, ConsumerError, Delivered, Happening, Inner, Outcome};
use super::dead_letter;
use super::envelope;
use super::reader::{Batch, Item, Taking, Work};

/// How long the broker may take to keep a dead letter.
const BURY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many are made at once.
const BURIED_AT_ONCE: usize = 32;
/// The longest delay before an event that failed is delivered again.
const MAX_DELAY: Duration = Duration::from_mins(1);
/// The longest pause before a batch is tried again while the store is out of reach.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How many events' failures are remembered.
const MAX_FAILED: usize = 10_000;

/// One loop that takes a batch, applies it and acknowledges it, then takes the next.
pub(super) struct Lane<A> {
    pub(super) inner: Arc<Inner>,
    pub(super) apply: Arc<A>,
    pub(super) taking: Arc<Taking>,
    pub(super) failures: Arc<Failures>,
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

    async fn work(&self, mut batch: Batch<'_>) {
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

    /// Applies a batch; where it fails, its halves, so that one bad event holds up few others and not for long.
    async fn apply_all(&self, events: Vec<Applying>, batch: Batch<'_>) {
        let mut batch = Some(batch);
        let mut parts = vec![events];
        let mut tries = 0;
        while let Some(part) = parts.pop() {
            let held: Vec<Arc<Message>> =
                parts.iter().flatten().chain(&part).map(|event| Arc::clone(&event.message)).collect();
            let events: Vec<Delivered> = part.iter().map(|event| event.delivered.clone()).collect();
            let started = Instant::now();
            // A task of its own: a panic stays within, and a write that is under way is never torn.
            let apply = Arc::clone(&self.apply);
            let applying = tokio::spawn(async move { apply(events).await });
            let result = self.meanwhile_held(&held, applying).await;
            let result = result.unwrap_or_else(|panic| Err(ApplyError::Failed(panic.to_string())));
            match result {
                Ok(()) => {
                    tries = 0;
                    let took = started.elapsed();
                    (self.inner.config.observe)(&Happening::Applied { events: part.len(), took });
                    if parts.is_empty() {
                        // The next of these communities need not wait for the acknowledgements.
                        drop(batch.take());
                    }
                    self.failures.forget(part.iter().map(|event| event.delivered.sequence));
                    acknowledge(&self.inner, part.into_iter().map(|event| event.message).collect()).await;
                }
                Err(ApplyError::Unavailable(why)) => {
                    for message in &held {
                        self.inner.observe(envelope::event_type(&message.subject), Outcome::Waiting);
                    }
                    tracing::warn!(
                        error = why,
                        events = held.len(),
                        "events wait, the store is out of reach"
                    );
                    parts.push(part);
                    if self.wait_for_store(&held, tries).await.is_break() {
                        return;
                    }
                    tries = tries.saturating_add(1);
                }
                Err(ApplyError::Poison(id, why)) => {
                    let (poison, rest): (Vec<Applying>, Vec<Applying>) =
                        part.into_iter().partition(|event| event.delivered.event.id == id);
                    if poison.is_empty() {
                        self.split(rest, &why, &mut parts).await;
                        continue;
                    }
                    if !rest.is_empty() {
                        parts.push(rest);
                    }
                    for event in poison {
                        self.bury(&event.message, &why, Outcome::GivenUp).await;
                    }
                }
                Err(ApplyError::Failed(why)) => self.split(part, &why, &mut parts).await,
            }
        }
    }

    async fn split(&self, mut part: Vec<Applying>, why: &str, parts: &mut Vec<Vec<Applying>>) {
        if part.len() > 1 {
            let second = part.split_off(part.len() / 2);
            parts.push(second);
            parts.push(part);
            return;
        }
        for Applying { delivered, message } in part {
            let failures = self.failures.add(delivered.sequence);
            if failures >= self.inner.config.max_deliveries {
                self.failures.forget(std::iter::once(delivered.sequence));
                self.bury(&message, why, Outcome::GivenUp).await;
            } else {
                tracing::warn!(
                    error = why,
                    event.id = %delivered.event.id,
                    event.failures = failures,
                    "an event could not be applied and is tried again later"
                );
                self.inner.observe(Some(delivered.event.effect.event_type()), Outcome::Delayed);
                self.deliver_again(&message, failures).await;
            }
        }
    }

    /// Waits before a batch is tried again. Breaks when reading is stopped, having given the events back.
    async fn wait_for_store(&self, held: &[Arc<Message>], tries: u32) -> ControlFlow<()> {
        let pause =
            Duration::from_millis(250).saturating_mul(2_u32.saturating_pow(tries.min(16))).min(MAX_PAUSE);
        let _stall = self.taking.stall();
        self.meanwhile_held(held, async {
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
                tracing::warn!(
                    reason,
                    event.sequence = info.stream_sequence,
                    // The subject is the publisher's; only what is known of it is repeated.
                    event.r#type = event_type.map_or("unknown", EventType::as_str),
                    "an event became a dead letter"
                );
                inner.observe(event_type, why);
                if let Err(error) = message.double_ack_with(AckKind::Term).await {
                    acknowledgement_lost(inner, message, &*error);
                }
            }
            Err(error) => {
                tracing::error!(error = ?error, event.sequence = info.stream_sequence, "a dead letter was not kept");
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
