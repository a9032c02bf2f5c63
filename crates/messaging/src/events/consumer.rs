//! Reads the stream of events: batches in, their effects applied, then each acknowledged.

use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy};
use async_nats::jetstream::{self, AckKind, Context, Message};
use futures_util::{FutureExt, StreamExt};
use muster_domain::{Event, EventId};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead_letter;
use super::envelope::{self, Decoded};
use super::stream::{self, EVENTS_SUBJECTS, StreamBounds};
use crate::connection::{Connection, LinkState};

/// How long one wait for the first event of a batch lasts.
const WAIT: Duration = Duration::from_secs(2);
/// How much longer than that the broker may take to say that there is none.
const SILENCE: Duration = Duration::from_secs(2);
/// How long the rest of a batch may take, which the server has ready.
const REST: Duration = Duration::from_secs(5);
/// The most bytes of the rest of a batch: with the batches at once, this bounds the memory that events take.
const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How long the broker may take to keep a dead letter.
const BURY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest delay before an event that failed is delivered again.
const MAX_DELAY: Duration = Duration::from_mins(1);
/// The longest pause before a batch is tried again while the store is out of reach.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How events are read.
#[derive(Clone)]
pub struct ConsumerConfig {
    /// The consumer's name on the stream. All replicas of a worker share one.
    pub durable: String,
    /// How many events are applied together at most: 1 to 500.
    pub batch: usize,
    /// How many batches are worked on at once: 1 to 16.
    pub lanes: usize,
    /// How long the broker waits for an acknowledgement or a sign of life before it delivers an event again.
    pub ack_wait: Duration,
    /// How many events may be unacknowledged at once, over all replicas.
    pub max_ack_pending: i64,
    /// After how many deliveries an event that keeps failing becomes a dead letter.
    pub max_deliveries: u32,
    /// How large the streams are made where they are missing.
    pub bounds: StreamBounds,
    /// Told of whatever happens.
    pub observe: Observe,
}

impl Default for ConsumerConfig {
    /// Two batches of 500 at once as `muster-worker`; 30 s to acknowledge, 20 deliveries, told to nobody.
    fn default() -> Self {
        Self {
            durable: "muster-worker".to_owned(),
            batch: 500,
            lanes: 2,
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 20_000,
            max_deliveries: 20,
            bounds: StreamBounds::default(),
            observe: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for ConsumerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerConfig")
            .field("durable", &self.durable)
            .field("batch", &self.batch)
            .field("lanes", &self.lanes)
            .field("ack_wait", &self.ack_wait)
            .field("max_ack_pending", &self.max_ack_pending)
            .field("max_deliveries", &self.max_deliveries)
            .field("bounds", &self.bounds)
            .finish_non_exhaustive()
    }
}

/// Gets every [`Happening`]; it must not block.
pub type Observe = Arc<dyn Fn(&Happening) + Send + Sync>;

/// Something that happened to events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// They were applied; their acknowledgements follow.
    Applied {
        /// How many.
        events: usize,
        /// How long that took.
        took: Duration,
    },
    /// One was acknowledged without effect, for its chat server is out for the moment.
    Outage,
    /// One was acknowledged without effect, for its type is unknown.
    Unknown,
    /// One became a dead letter because it can never be applied.
    Malformed,
    /// One became a dead letter because applying it failed too often.
    GivenUp,
    /// One is delivered again later because applying it failed.
    Delayed,
    /// The store is out of reach; these wait.
    Waiting {
        /// How many.
        events: usize,
    },
    /// A dead letter could not be kept; the event is delivered again later.
    NotBuried,
    /// An acknowledgement was lost; the event is delivered again, and its effect is known by its id.
    NotAcknowledged,
}

/// One event and how it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The event.
    pub event: Event,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// How often it has been delivered, this time included.
    pub deliveries: u32,
}

/// Why events were not applied. None of them was, whatever the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The store is out of reach or refuses writes: the events are tried again for as long as it takes, and none becomes
    /// a dead letter for it.
    #[error("the store is out of reach: {0}")]
    Unavailable(String),
    /// Something failed that may pass. Several events are tried apart; one alone is delivered again, up to the bound.
    #[error("the events could not be applied: {0}")]
    Failed(String),
    /// This event can never be applied.
    #[error("event {0} can never be applied: {1}")]
    Poison(EventId, String),
}

/// How far reading is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Events that were not delivered yet.
    pub pending: u64,
    /// Events that were delivered and not acknowledged.
    pub unacknowledged: u64,
    /// Events that were delivered more than once and not acknowledged.
    pub redelivered: u64,
    /// How long ago the stream took the oldest event that is not acknowledged; `None` when there is none.
    pub oldest: Option<Duration>,
    /// Events that the stream dropped before they were acknowledged, as far as can be told. Above 0, events were lost.
    pub dropped: u64,
}

/// A reader of the stream of events.
#[derive(Debug, Clone)]
pub struct Consumer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connection: Connection,
    context: Context,
    config: ConsumerConfig,
    consumer: PullConsumer,
    stream_created: OffsetDateTime,
}

impl Consumer {
    /// Makes the streams where they are missing, and the durable consumer.
    ///
    /// # Errors
    /// [`ConsumerError`] says which of them could not be had.
    pub async fn open(connection: &Connection, config: ConsumerConfig) -> Result<Self, ConsumerError> {
        let context = jetstream::new(connection.client().clone());
        let events = stream::events(&context, &config.bounds).await?;
        stream::dead_letters(&context, &config.bounds).await?;
        let wanted = Config {
            durable_name: Some(config.durable.clone()),
            description: Some("Applies the chat gateway's events".to_owned()),
            deliver_policy: DeliverPolicy::All,
            replay_policy: ReplayPolicy::Instant,
            ack_policy: AckPolicy::Explicit,
            ack_wait: config.ack_wait,
            // Muster bounds deliveries itself, so that what is given up becomes a dead letter.
            max_deliver: -1,
            filter_subject: EVENTS_SUBJECTS.to_owned(),
            max_ack_pending: config.max_ack_pending,
            ..Config::default()
        };
        let consumer = events
            .create_consumer(wanted)
            .await
            .map_err(|cause| ConsumerError::Durable { name: config.durable.clone(), cause: cause.into() })?;
        let stream_created = events.cached_info().created;
        let connection = connection.clone();
        Ok(Self(Arc::new(Inner { connection, context, config, consumer, stream_created })))
    }

    /// How far reading is behind.
    ///
    /// # Errors
    /// [`ConsumerError`] when the broker cannot say.
    pub async fn lag(&self) -> Result<Lag, ConsumerError> {
        let unknown = |cause: Box<dyn std::error::Error + Send + Sync>| ConsumerError::Lag(cause);
        let info = self.0.consumer.get_info().await.map_err(|error| unknown(error.into()))?;
        let stream = stream::still_there(&self.0.context, self.0.stream_created)
            .await?
            .ok_or_else(|| unknown("the stream does not answer".into()))?;
        let unacknowledged = u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
        let oldest_sequence = info.ack_floor.stream_sequence.saturating_add(1);
        let oldest = if info.num_pending == 0 && unacknowledged == 0 {
            None
        } else {
            self.age(oldest_sequence.max(stream.state.first_sequence)).await
        };
        Ok(Lag {
            pending: info.num_pending,
            unacknowledged,
            redelivered: u64::try_from(info.num_redelivered).unwrap_or(u64::MAX),
            oldest,
            dropped: stream.state.first_sequence.saturating_sub(oldest_sequence),
        })
    }

    async fn age(&self, sequence: u64) -> Option<Duration> {
        let stream = self.0.context.get_stream(stream::EVENTS).await.ok()?;
        let message = stream.get_raw_message(sequence).await.ok()?;
        Some(Duration::try_from(OffsetDateTime::now_utc() - message.time).unwrap_or_default())
    }

    /// Begins to read. Every batch is given to `apply`, which must have applied all of it, durably, when it answers `Ok`,
    /// and none of it when it does not. Events arrive in no particular order, and may arrive again.
    pub fn start<A, F>(&self, apply: A) -> Reading
    where
        A: Fn(Vec<Delivered>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), ApplyError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let apply = Arc::new(apply);
        let mut lanes = JoinSet::new();
        for _ in 0..self.0.config.lanes.clamp(1, 16) {
            let lane = Lane { inner: Arc::clone(&self.0), apply: Arc::clone(&apply), stop: stop.clone() };
            lanes.spawn(lane.run());
        }
        Reading { lanes, stop }
    }
}

/// Reading that is under way.
#[derive(Debug)]
pub struct Reading {
    lanes: JoinSet<Result<(), ConsumerError>>,
    stop: CancellationToken,
}

impl Reading {
    /// Waits until reading can go on no more: the stream is gone or was made anew. It may be waited for again after
    /// being dropped.
    pub async fn ended(&mut self) -> ConsumerError {
        loop {
            match self.lanes.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(panic)) => return ConsumerError::Defect(panic.into()),
                None => return ConsumerError::Stopped,
            }
        }
    }

    /// Takes no more events, finishes and acknowledges those that were taken.
    ///
    /// # Errors
    /// [`ConsumerError::Unfinished`] when that takes longer than `deadline`: what is unacknowledged is delivered again.
    pub async fn stop(mut self, deadline: Duration) -> Result<(), ConsumerError> {
        self.stop.cancel();
        let finished = async { while self.lanes.join_next().await.is_some() {} };
        tokio::time::timeout(deadline, finished).await.map_err(|_| ConsumerError::Unfinished(deadline))
    }
}

/// An event and the message that it came in.
struct Item {
    delivered: Delivered,
    message: Arc<Message>,
}

/// One loop that takes a batch, applies it and acknowledges it, then takes the next. So no more is read than is worked
/// on, and the backlog stays with the broker.
struct Lane<A> {
    inner: Arc<Inner>,
    apply: Arc<A>,
    stop: CancellationToken,
}

impl<A, F> Lane<A>
where
    A: Fn(Vec<Delivered>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), ApplyError>> + Send + 'static,
{
    async fn run(self) -> Result<(), ConsumerError> {
        while !self.stop.is_cancelled() {
            match self.pull().await {
                Ok(messages) if messages.is_empty() => {}
                Ok(messages) => self.work(messages).await,
                Err(cause) => {
                    tracing::debug!(error = %cause, "a batch of events could not be taken");
                    stream::still_there(&self.inner.context, self.inner.stream_created).await?;
                    self.consumer_still_there().await?;
                    self.pause(Duration::from_secs(1)).await;
                }
            }
        }
        Ok(())
    }

    fn observe(&self, happening: &Happening) {
        (self.inner.config.observe)(happening);
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

    /// Waits for an event, then takes whatever else is ready, up to a batch.
    async fn pull(&self) -> Result<Vec<Message>, async_nats::Error> {
        let inner = &self.inner;
        let mut link = inner.connection.state();
        if *link.borrow_and_update() != LinkState::Connected {
            self.pause(Duration::from_millis(100)).await;
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
        let more = inner.config.batch.clamp(1, 500).saturating_sub(1);
        if more == 0 {
            return Ok(messages);
        }
        // From here on nothing fails the batch: what was taken is worked on.
        let rest = inner.consumer.fetch().max_messages(more).max_bytes(MAX_BATCH_BYTES).messages().await;
        if let Ok(mut rest) = rest {
            while let Ok(Some(Ok(message))) = tokio::time::timeout(REST, rest.next()).await {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    async fn work(&self, messages: Vec<Message>) {
        let mut items = Vec::with_capacity(messages.len());
        let mut without_effect = Vec::new();
        for message in messages {
            // Whatever is not of a stream was not asked for.
            let Ok(info) = message.info() else { continue };
            match envelope::decode(&message.subject, &message.payload) {
                Ok(Decoded::Event(event)) => {
                    let sequence = info.stream_sequence;
                    let deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
                    let delivered = Delivered { event, sequence, deliveries };
                    items.push(Item { delivered, message: Arc::new(message) });
                }
                Ok(Decoded::Outage) => {
                    self.observe(&Happening::Outage);
                    without_effect.push(Arc::new(message));
                }
                Ok(Decoded::Unknown { event_type }) => {
                    tracing::debug!(event.r#type = %event_type, "an event of unknown type is passed over");
                    self.observe(&Happening::Unknown);
                    without_effect.push(Arc::new(message));
                }
                Err(reason) => self.bury(&message, &reason.to_string(), &Happening::Malformed).await,
            }
        }
        self.acknowledge(without_effect).await;
        if !items.is_empty() {
            self.apply_all(items).await;
        }
    }

    /// Applies a batch; where it fails, its halves, so that one bad event holds up few others and not for long.
    async fn apply_all(&self, items: Vec<Item>) {
        let mut parts = vec![items];
        let mut tries = 0;
        while let Some(part) = parts.pop() {
            let held: Vec<Arc<Message>> =
                parts.iter().flatten().chain(&part).map(|item| Arc::clone(&item.message)).collect();
            let events: Vec<Delivered> = part.iter().map(|item| item.delivered.clone()).collect();
            let started = Instant::now();
            // A task of its own: a panic stays within, and a write that is under way is never torn.
            let apply = Arc::clone(&self.apply);
            let applying = tokio::spawn(async move { apply(events).await });
            let result = self.meanwhile_held(&held, applying).await;
            let result = result.unwrap_or_else(|panic| Err(ApplyError::Failed(panic.to_string())));
            match result {
                Ok(()) => {
                    tries = 0;
                    self.observe(&Happening::Applied { events: part.len(), took: started.elapsed() });
                    self.acknowledge(part.into_iter().map(|item| item.message).collect()).await;
                }
                Err(ApplyError::Unavailable(why)) => {
                    self.observe(&Happening::Waiting { events: held.len() });
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
                    let (poison, rest): (Vec<Item>, Vec<Item>) =
                        part.into_iter().partition(|item| item.delivered.event.id == id);
                    if poison.is_empty() {
                        self.split(rest, &why, &mut parts).await;
                        continue;
                    }
                    if !rest.is_empty() {
                        parts.push(rest);
                    }
                    for item in poison {
                        self.bury(&item.message, &why, &Happening::GivenUp).await;
                    }
                }
                Err(ApplyError::Failed(why)) => self.split(part, &why, &mut parts).await,
            }
        }
    }

    async fn split(&self, mut part: Vec<Item>, why: &str, parts: &mut Vec<Vec<Item>>) {
        if part.len() > 1 {
            let second = part.split_off(part.len() / 2);
            parts.push(second);
            parts.push(part);
            return;
        }
        for item in part {
            if item.delivered.deliveries >= self.inner.config.max_deliveries {
                self.bury(&item.message, why, &Happening::GivenUp).await;
            } else {
                tracing::warn!(
                    error = why,
                    event.id = %item.delivered.event.id,
                    event.deliveries = item.delivered.deliveries,
                    "an event could not be applied and is tried again later"
                );
                self.observe(&Happening::Delayed);
                self.deliver_again(&item.message, item.delivered.deliveries).await;
            }
        }
    }

    /// Waits before a batch is tried again. Breaks when reading is stopped, having given the events back.
    async fn wait_for_store(&self, held: &[Arc<Message>], tries: u32) -> ControlFlow<()> {
        let pause =
            Duration::from_millis(250).saturating_mul(2_u32.saturating_pow(tries.min(16))).min(MAX_PAUSE);
        self.meanwhile_held(held, self.pause(pause)).await;
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

    /// Acknowledges messages and waits until the broker has the last. It takes a connection's acknowledgements in their order,
    /// so it has those before, too; what a broken connection loses is delivered again, and known by its id.
    async fn acknowledge(&self, messages: Vec<Arc<Message>>) {
        let Some((last, others)) = messages.split_last() else { return };
        for message in others {
            if let Err(error) = message.ack().await {
                self.acknowledgement_lost(&*error);
            }
        }
        if let Err(error) = last.double_ack().await {
            self.acknowledgement_lost(&*error);
        }
    }

    fn acknowledgement_lost(&self, error: &(dyn std::error::Error + Send + Sync)) {
        tracing::debug!(error = %error, "an acknowledgement was lost");
        self.observe(&Happening::NotAcknowledged);
    }

    /// Makes a message a dead letter: first the copy, and only when the broker has it, the end of its deliveries.
    async fn bury(&self, message: &Message, reason: &str, why: &Happening) {
        let Ok(info) = message.info() else { return };
        let inner = &self.inner;
        let room = inner.connection.max_payload();
        let created = inner.stream_created;
        match dead_letter::bury(&inner.context, room, created, message, &info, reason, BURY_TIMEOUT).await {
            Ok(()) => {
                tracing::warn!(
                    reason,
                    event.sequence = info.stream_sequence,
                    event.subject = %message.subject,
                    "an event became a dead letter"
                );
                self.observe(why);
                if let Err(error) = message.double_ack_with(AckKind::Term).await {
                    self.acknowledgement_lost(&*error);
                }
            }
            Err(error) => {
                tracing::error!(error = ?error, event.sequence = info.stream_sequence, "a dead letter was not kept");
                self.observe(&Happening::NotBuried);
                self.deliver_again(message, u32::try_from(info.delivered).unwrap_or(u32::MAX)).await;
            }
        }
    }

    async fn deliver_again(&self, message: &Message, deliveries: u32) {
        if let Err(error) = message.ack_with(AckKind::Nak(Some(delay(deliveries)))).await {
            self.acknowledgement_lost(&*error);
        }
    }
}

/// How long an event waits that was delivered so often: 1 s, 2 s, 4 s and so on up to a minute.
fn delay(deliveries: u32) -> Duration {
    Duration::from_secs(1)
        .saturating_mul(2_u32.saturating_pow(deliveries.saturating_sub(1).min(16)))
        .min(MAX_DELAY)
}

/// Why events are not read.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// A stream is neither there nor can be made.
    #[error("the stream {name} cannot be had: see that JetStream is on and that this user may use it")]
    Stream {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The durable consumer cannot be made.
    #[error(
        "the consumer {name} cannot be had: delete one of other settings, and see that this user may make it"
    )]
    Durable {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The stream was deleted.
    #[error("the stream EVENTS was deleted: whatever was not applied is lost; restore it, then start again")]
    StreamGone,
    /// The stream was deleted and made again.
    #[error(
        "the stream EVENTS was deleted and made again: whatever was not applied is lost; start again to read the new one \
         from its beginning"
    )]
    StreamReplaced,
    /// The durable consumer was deleted.
    #[error(
        "the durable consumer was deleted: start again, and the whole stream is read anew, to no second effect"
    )]
    DurableGone,
    /// A dead letter was not kept.
    #[error("the stream DEAD_LETTERS did not take a dead letter: see that it has room")]
    Bury(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The broker did not say how far reading is behind.
    #[error("the broker does not say how far reading is behind")]
    Lag(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Not everything was finished in time.
    #[error("events were still being applied after {0:?}: they are delivered again")]
    Unfinished(Duration),
    /// Reading was stopped.
    #[error("reading was stopped")]
    Stopped,
    /// A defect in the reader itself.
    #[error("the reader of events has a defect")]
    Defect(#[source] Box<dyn std::error::Error + Send + Sync>),
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
}
