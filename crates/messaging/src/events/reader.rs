//! Reads the stream ahead of the lanes, and fills the queue from which they take batches.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull;
use futures_util::{FutureExt, StreamExt};
use muster_domain::TimeBounds;
use time::OffsetDateTime;
use tokio::time::{Instant, interval};
use tokio_util::sync::CancellationToken;

use super::delivery::{Delivery, Item, TakenEvent, kept};
use super::durable::Durable;
use super::envelope::{self, Decoded, EventBounds};
use super::error::ConsumerError;
use super::loss_watch::watch_losses;
use super::outcome::Outcome;
use super::reading::Reading;
use super::shared_queue::SharedQueue;
use super::subjects::event_type;
use crate::connection::LinkState;
use crate::log_budget::LogBudget;

/// How long one request for the first event waits.
const WAIT: Duration = Duration::from_secs(2);
/// How much later than that the broker may report that there is none.
const LATE: Duration = Duration::from_secs(2);
/// How many events, and bytes, are requested at once beside the first.
const READ: usize = 4000;
const READ_BYTES: usize = 4 * 1024 * 1024;
/// How long to wait for each further message of a batch, which the server has ready.
const NEXT: Duration = Duration::from_secs(5);
/// A warning is logged when the broker's clock is ahead of this process's by more than this.
const CLOCKS: time::Duration = time::Duration::minutes(1);
/// How often the queue is checked for deferred events to request, and for pauses that are over.
const DEFERRED_INTERVAL: Duration = Duration::from_millis(20);
/// How soon reading goes on when the store or the connection is back.
const RESUME_INTERVAL: Duration = Duration::from_millis(100);

/// Reads for all lanes.
pub(super) struct Reader {
    durable: Arc<Durable>,
    queue: Arc<SharedQueue>,
    stop: CancellationToken,
    reading: Arc<Reading>,
    /// Log lines about clocks that differ.
    clock_log: LogBudget,
}

impl Reader {
    pub(super) const fn new(
        durable: Arc<Durable>,
        queue: Arc<SharedQueue>,
        stop: CancellationToken,
        reading: Arc<Reading>,
    ) -> Self {
        Self { durable, queue, stop, reading, clock_log: LogBudget::new(1) }
    }

    pub(super) async fn run(self) -> Result<(), ConsumerError> {
        let acks = &self.durable.acks;
        let ended = tokio::select! {
            ended = self.read() => ended,
            never = acks.send_progress_acks(|| self.queue.messages()) => match never {},
            () = self.request_deferred() => Ok(()),
            replaced = watch_losses(&self.durable, &self.queue) => Err(replaced),
        };
        // Another reader gets them at once instead of after the broker's wait.
        let (items, deferred) = self.queue.lock().drain();
        acks.nak(items.iter().map(|item| Arc::clone(item.message())).collect()).await;
        acks.nak_deferred(deferred).await;
        ended
    }

    async fn read(&self) -> Result<(), ConsumerError> {
        // While there is more, it is requested before the last messages are decoded, so that the broker need not wait for that.
        let mut ahead: Option<pull::Batch> = None;
        while ahead.is_some() || !self.stop.is_cancelled() {
            if ahead.is_none() && self.queue.is_stalled() {
                self.pause(RESUME_INTERVAL).await;
                continue;
            }
            let read = match ahead.take() {
                Some(batch) => Ok(read_all(batch).await),
                None => self.pull().await,
            };
            match read {
                Ok(messages) => {
                    if *self.durable.connection.state().borrow() == LinkState::Connected {
                        self.reading.succeeded();
                    }
                    let is_behind = is_full(&messages);
                    self.queue.set_behind(is_behind);
                    if is_behind && !self.queue.is_stalled() && !self.stop.is_cancelled() {
                        ahead = self.fetch().await;
                    }
                    self.enqueue(messages).await;
                }
                Err(cause) => {
                    self.reading.failed(&cause);
                    self.durable.check_stream().await?;
                    self.durable.check_consumer().await?;
                    self.pause(Duration::from_secs(1)).await;
                }
            }
        }
        Ok(())
    }

    /// Requests deferred events, for ever, when there is room for them, and ends pauses of communities.
    async fn request_deferred(&self) {
        let mut ticks = interval(DEFERRED_INTERVAL);
        loop {
            ticks.tick().await;
            self.queue.resume_due();
            if !self.queue.is_stalled() {
                let deferred = self.queue.lock().take_deferred(Instant::now());
                self.durable.acks.nak_deferred(deferred).await;
            }
        }
    }

    /// Sleeps until the time has passed or the consumer is stopped.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Waits for an event, then reads all others that are ready, up to a limit.
    async fn pull(&self) -> Result<Vec<Message>, async_nats::Error> {
        let durable = &self.durable;
        let mut link = durable.connection.state();
        if *link.borrow_and_update() != LinkState::Connected {
            self.pause(RESUME_INTERVAL).await;
            return Ok(Vec::new());
        }
        let requested = Instant::now();
        let mut wait = durable.consumer.batch().max_messages(1).expires(WAIT).messages().await?;
        let first = tokio::select! {
            first = wait.next() => first,
            // A request is lost with its connection.
            _ = link.changed() => None,
            () = self.stop.cancelled() => {
                // A message that has arrived already goes back at once instead of after the broker's wait.
                if let Some(Some(Ok(message))) = wait.next().now_or_never() {
                    durable.acks.nak(vec![Arc::new(message)]).await;
                }
                None
            }
        };
        let Some(first) = first.transpose()? else {
            // The broker reports that it has nothing. If it is silent, it may no longer have the consumer.
            let is_silent = requested.elapsed() > WAIT + LATE;
            return if is_silent { Err("no answer".into()) } else { Ok(Vec::new()) };
        };
        let mut messages = vec![first];
        // From here on nothing fails, so that every message read is processed.
        if let Some(rest) = self.fetch().await {
            messages.extend(read_all(rest).await);
        }
        Ok(messages)
    }

    /// Requests all that is ready, up to a limit.
    async fn fetch(&self) -> Option<pull::Batch> {
        self.durable.consumer.fetch().max_messages(READ).max_bytes(READ_BYTES).messages().await.ok()
    }

    /// Puts messages into the queue; acknowledges those without effect, and defers those without room.
    async fn enqueue(&self, messages: Vec<Message>) {
        let mut without_effect = Vec::new();
        let durable = &self.durable;
        let max_bytes = durable.config.max_bytes;
        let now = OffsetDateTime::now_utc();
        for message in messages {
            // A message that no stream delivered was not requested.
            let Some(delivery) = Delivery::of(&message) else { continue };
            durable.losses.delivered(delivery);
            let owner = envelope::guild_of(&message.payload, max_bytes);
            if !self.queue.lock().has_room(&owner, delivery) {
                // Most of a flood ends here, so only its community is decoded.
                if !delivery.is_repeated() {
                    durable.observe(event_type(&message.subject), Outcome::Deferred);
                }
                if durable.acks.can_defer(&message) {
                    self.queue.lock().defer(owner, delivery);
                }
                continue;
            }
            compare_clocks(&self.clock_log, delivery.stored - now);
            let times = TimeBounds::of_stored(delivery.stored, now, durable.config.max_clock_skew);
            let bounds = EventBounds { max_bytes, times };
            let item = match envelope::decode(&message.subject, &message.payload, bounds) {
                Ok(Decoded::Event(event)) => Item::Event(TakenEvent::new(event, delivery, message)),
                Ok(Decoded::Outage) => {
                    durable.observe(event_type(&message.subject), Outcome::Outage);
                    without_effect.push(Arc::new(message));
                    continue;
                }
                Ok(Decoded::Unknown { .. }) => {
                    tracing::debug!("an event of an unknown type is skipped");
                    durable.observe(None, Outcome::Unknown);
                    without_effect.push(Arc::new(message));
                    continue;
                }
                Err(error) => Item::Malformed { message: kept(message), reason: error.to_string() },
            };
            self.queue.lock().push(owner, item.stripe(), delivery, item);
        }
        self.queue.notify();
        durable.acks.ack(without_effect).await;
    }
}

/// Warns when the broker's clock is ahead by so much that one of the two is wrong.
fn compare_clocks(log: &LogBudget, ahead: time::Duration) {
    if ahead > CLOCKS
        && let Some(line) = log.line()
    {
        tracing::warn!(
            ahead_s = ahead.as_seconds_f64(),
            left_out = line.left_out,
            "the broker's clock is ahead of this worker's: set both by the same time servers"
        );
    }
}

/// Whether a batch ended since it had as much as was requested, of messages or of bytes: one that does not fit any more is left out.
fn is_full(messages: &[Message]) -> bool {
    let bytes: usize = messages.iter().map(|message| message.length).sum();
    messages.len() >= READ || bytes >= READ_BYTES / 2
}

async fn read_all(mut batch: pull::Batch) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Ok(Some(Ok(message))) = tokio::time::timeout(NEXT, batch.next()).await {
        messages.push(message);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brokers_clock_is_warned_of_only_when_it_is_far_ahead() {
        let warns = |ahead| {
            let log = LogBudget::new(1);
            compare_clocks(&log, ahead);
            log.line().is_none()
        };
        // An event that waited was stored long ago, which says nothing of clocks.
        assert!(!warns(-time::Duration::days(7)) && !warns(time::Duration::ZERO) && !warns(CLOCKS));
        assert!(warns(CLOCKS + time::Duration::MILLISECOND));
    }
}
