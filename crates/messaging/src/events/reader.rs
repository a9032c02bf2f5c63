//! Reads the stream ahead of the lanes, and keeps what was taken in queues from which they take batches.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::consumer::{ConsumerError, Delivered, Inner, MAX_BATCH, Outcome};
use super::envelope::{self, Decoded};
use super::lane;
use super::stream;
use super::waiting::{Owner, Taken, Waiting};
use crate::connection::LinkState;
use crate::request::TRACEPARENT;

/// How long one wait for the first event lasts.
const WAIT: Duration = Duration::from_secs(2);
/// How much longer than that the broker may take to say that there is none.
const SILENCE: Duration = Duration::from_secs(2);
/// How many events are taken at once beside the first, and of how many bytes.
const READ: usize = 1000;
const READ_BYTES: usize = 4 * 1024 * 1024;
/// How long they may take, which the server has ready.
const REST: Duration = Duration::from_secs(5);
/// The most bytes of a batch.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How soon it is seen that the store is back, or that the connection is.
const LOOK: Duration = Duration::from_millis(100);
/// The longest `traceparent` that is passed on.
const MAX_TRACEPARENT: usize = 128;

/// What the reader gives to the lanes.
pub(super) struct Taking {
    waiting: Mutex<Waiting<Item>>,
    /// Something waits that did not, or may be worked on that might not.
    more: Notify,
    /// How many lanes wait for the store. Meanwhile nothing is read: it would all be put off, again and again.
    stalled: AtomicUsize,
}

/// What was taken and what is to be done with it.
pub(super) struct Item {
    pub(super) message: Arc<Message>,
    pub(super) work: Work,
}

/// What is to be done with a message.
pub(super) enum Work {
    /// Its event is to be applied.
    Apply(Delivered),
    /// It can never be applied, for this reason.
    Bury(String),
}

/// A batch. Until it is dropped, no other lane works on its communities.
pub(super) struct Batch<'a> {
    pub(super) items: Vec<Item>,
    owners: Vec<Owner>,
    taking: &'a Taking,
    worked: Option<(usize, Duration)>,
}

impl Batch<'_> {
    /// Says how many were applied at once and how long that took.
    pub(super) fn worked(&mut self, number: usize, took: Duration) {
        self.worked = Some((number, took));
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.taking.lock().release(std::mem::take(&mut self.owners), self.worked);
        self.taking.more.notify_waiters();
    }
}

/// Until it is dropped, nothing is read.
pub(super) struct Stall<'a>(&'a Taking);

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.0.stalled.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Taking {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(Waiting::new(Instant::now())),
            more: Notify::new(),
            stalled: AtomicUsize::new(0),
        }
    }

    /// Waits for a batch of up to `most` events.
    pub(super) async fn batch(&self, most: usize) -> Batch<'_> {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            let taken = self.lock().take(most.clamp(1, MAX_BATCH), BATCH_BYTES);
            if let Some(Taken { items, owners }) = taken {
                return Batch { items, owners, taking: self, worked: None };
            }
            more.await;
        }
    }

    /// Stops reading for as long as a lane waits for the store.
    pub(super) fn stall(&self) -> Stall<'_> {
        self.stalled.fetch_add(1, Ordering::Relaxed);
        Stall(self)
    }

    // A panic with the lock held leaves queues that are whole.
    fn lock(&self) -> MutexGuard<'_, Waiting<Item>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one that reads.
pub(super) struct Reader {
    pub(super) inner: Arc<Inner>,
    pub(super) taking: Arc<Taking>,
    pub(super) stop: CancellationToken,
}

impl Reader {
    pub(super) async fn run(self) -> Result<(), ConsumerError> {
        let ended = tokio::select! {
            ended = self.read() => ended,
            () = self.keep() => Ok(()),
        };
        // Whoever reads on has it at once instead of after the broker's wait.
        let left = self.taking.lock().drain();
        for item in left {
            let _ = item.message.ack_with(AckKind::Nak(None)).await;
        }
        ended
    }

    async fn read(&self) -> Result<(), ConsumerError> {
        while !self.stop.is_cancelled() {
            if self.taking.stalled.load(Ordering::Relaxed) > 0 {
                self.pause(LOOK).await;
                continue;
            }
            match self.pull().await {
                Ok(messages) => self.sort(messages).await,
                Err(cause) => {
                    tracing::debug!(error = %cause, "events could not be taken");
                    stream::still_there(&self.inner.context, self.inner.stream_created).await?;
                    self.consumer_still_there().await?;
                    self.pause(Duration::from_secs(1)).await;
                }
            }
        }
        Ok(())
    }

    /// Tells the broker, for ever, that what waits is not lost.
    async fn keep(&self) {
        let mut signs = tokio::time::interval(self.inner.config.ack_wait / 3);
        signs.tick().await;
        loop {
            signs.tick().await;
            let held: Vec<Arc<Message>> = {
                let mut waiting = self.taking.lock();
                waiting.forget(Instant::now());
                waiting.iter().map(|item| Arc::clone(&item.message)).collect()
            };
            for message in held {
                // Lost, the event may be delivered a second time, which changes nothing.
                let _ = message.ack_with(AckKind::Progress).await;
            }
        }
    }

    /// Sleeps, unless reading is stopped.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }

    async fn consumer_still_there(&self) -> Result<(), ConsumerError> {
        use async_nats::jetstream::context::ConsumerInfoErrorKind;
        match self.inner.consumer.get_info().await {
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Err(ConsumerError::DurableGone),
            // Not to be reached is not to be gone.
            _ => Ok(()),
        }
    }

    /// Waits for an event, then takes whatever else is ready, up to a bound.
    async fn pull(&self) -> Result<Vec<Message>, async_nats::Error> {
        let inner = &self.inner;
        let mut link = inner.connection.state();
        if *link.borrow_and_update() != LinkState::Connected {
            self.pause(LOOK).await;
            return Ok(Vec::new());
        }
        let asked = Instant::now();
        let mut wait = inner.consumer.batch().max_messages(1).expires(WAIT).messages().await?;
        let first = tokio::select! {
            first = wait.next() => first,
            // A request that was waiting for an answer is lost with its connection.
            _ = link.changed() => None,
            () = self.stop.cancelled() => {
                // What has arrived already goes back at once instead of after the broker's wait.
                if let Some(Some(Ok(message))) = wait.next().now_or_never() {
                    message.ack_with(AckKind::Nak(None)).await?;
                }
                None
            }
        };
        let Some(first) = first.transpose()? else {
            // The broker says so when it has nothing. One that says nothing at all may have no such consumer any more.
            return if asked.elapsed() > WAIT + SILENCE { Err("no answer".into()) } else { Ok(Vec::new()) };
        };
        let mut messages = vec![first];
        // From here on nothing fails: what was taken is worked on.
        let rest = inner.consumer.fetch().max_messages(READ).max_bytes(READ_BYTES).messages().await;
        if let Ok(mut rest) = rest {
            while let Ok(Some(Ok(message))) = tokio::time::timeout(REST, rest.next()).await {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    /// Puts messages into the queues; acknowledges those without effect, and puts off those without room.
    async fn sort(&self, messages: Vec<Message>) {
        let mut without_effect = Vec::new();
        let mut put_off = Vec::new();
        let now = Instant::now();
        for message in messages {
            // Whatever is not of a stream was not asked for.
            let Ok(info) = message.info() else { continue };
            let (owner, work) = match envelope::decode(&message.subject, &message.payload) {
                Ok(Decoded::Event(event)) => {
                    let delivered = Delivered {
                        sequence: info.stream_sequence,
                        deliveries: u32::try_from(info.delivered).unwrap_or(u32::MAX),
                        traceparent: traceparent(&message),
                        event,
                    };
                    (Some(delivered.event.guild.clone()), Work::Apply(delivered))
                }
                Ok(Decoded::Outage) => {
                    self.inner.observe(envelope::event_type(&message.subject), Outcome::Outage);
                    without_effect.push(Arc::new(message));
                    continue;
                }
                Ok(Decoded::Unknown { .. }) => {
                    tracing::debug!("an event of unknown type is passed over");
                    self.inner.observe(None, Outcome::Unknown);
                    without_effect.push(Arc::new(message));
                    continue;
                }
                Err(reason) => (None, Work::Bury(reason.to_string())),
            };
            let bytes = message.length;
            let item = Item { message: Arc::new(message), work };
            if let Err(refused) = self.taking.lock().put(owner, bytes, item, now) {
                put_off.push(refused);
            }
        }
        self.taking.more.notify_waiters();
        for (item, delay) in put_off {
            self.inner.observe(envelope::event_type(&item.message.subject), Outcome::PutOff);
            if let Err(error) = item.message.ack_with(AckKind::Nak(Some(delay))).await {
                lane::acknowledgement_lost(&self.inner, &item.message, &*error);
            }
        }
        lane::acknowledge(&self.inner, without_effect).await;
    }
}

fn traceparent(message: &Message) -> Option<String> {
    let header = message.headers.as_ref()?.get(TRACEPARENT)?.as_str();
    (header.len() <= MAX_TRACEPARENT).then(|| header.to_owned())
}
