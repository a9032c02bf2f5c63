//! The durable consumer of the stream of events, and what is told of it.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy};
use async_nats::jetstream::{self, Context};
use muster_domain::{Event, EventId, EventType, MaxClockSkew};
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::envelope;
use super::fault::{Fault, Faults, Probe, StoreFailure};
use super::fitness::{Finding, Verdict};
use super::lane::{Failures, Lane};
use super::losses::Losses;
use super::reader::{Reader, Taking};
use super::stream::{self, EVENTS_SUBJECTS, StreamBounds};
use crate::connection::Connection;

/// The most events that are applied together.
pub const MAX_BATCH: usize = 2000;

/// How events are read.
#[derive(Clone)]
pub struct ConsumerConfig {
    /// The consumer's name on the stream. All replicas of a worker share one.
    pub durable: String,
    /// How many events are applied together at most: 1 to [`MAX_BATCH`].
    pub batch: usize,
    /// How many batches are worked on at once: 1 to 16. Of one community, one fewer, but one at least.
    pub lanes: usize,
    /// How long the broker waits for an acknowledgement or a sign of life before it delivers an event again.
    pub ack_wait: Duration,
    /// How many events may be unacknowledged at once, over all replicas: those that wait or are put off, too. How far one
    /// community's flood may reach before it holds up the others.
    pub max_ack_pending: i64,
    /// After how many failures to apply it an event becomes a dead letter.
    pub max_deliveries: u32,
    /// The largest event in bytes, within [`envelope::MAX_BYTES`]; a larger one becomes a dead letter.
    pub max_bytes: usize,
    /// How far ahead of this process's clock an event's time may be; one further ahead becomes a dead letter.
    pub max_clock_skew: MaxClockSkew,
    /// How large the streams are made where they are missing.
    pub bounds: StreamBounds,
    /// What is done where those that are there can lose events.
    pub unfit: Unfit,
    /// Told of whatever happens.
    pub observe: Observe,
}

impl Default for ConsumerConfig {
    /// Three batches of 1000 at once as `muster-worker`; 30 s to acknowledge, 20 deliveries, 256 KiB, 10 minutes ahead, streams
    /// that can lose events refused, told to nobody.
    fn default() -> Self {
        Self {
            durable: "muster-worker".to_owned(),
            batch: 1000,
            lanes: 3,
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 500_000,
            max_deliveries: 20,
            max_bytes: envelope::DEFAULT_MAX_BYTES,
            max_clock_skew: MaxClockSkew::default(),
            bounds: StreamBounds::default(),
            unfit: Unfit::Refused,
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
            .field("max_bytes", &self.max_bytes)
            .field("max_clock_skew", &self.max_clock_skew)
            .field("bounds", &self.bounds)
            .field("unfit", &self.unfit)
            .finish_non_exhaustive()
    }
}

/// What is done with streams, or a consumer, that are there and can lose events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// They are refused.
    Refused,
    /// They are warned of.
    WarnedOf,
}

impl Unfit {
    /// Logs what is unwise, and refuses or logs what is unfit.
    fn judge(self, findings: Vec<Finding>) -> Result<(), ConsumerError> {
        let (unfit, others): (Vec<Finding>, Vec<Finding>) =
            findings.into_iter().partition(|finding| finding.is_unfit() && self == Self::Refused);
        for finding in &others {
            match &finding.verdict {
                Verdict::Fine => {}
                Verdict::Unwise(fault) | Verdict::Unfit(fault) => tracing::warn!(
                    place = finding.place.as_str(),
                    setting = finding.setting,
                    value = finding.value,
                    remedy = fault.remedy,
                    unfit = finding.is_unfit(),
                    "{}: {}",
                    finding.place,
                    fault.why
                ),
            }
        }
        if unfit.is_empty() { Ok(()) } else { Err(ConsumerError::Unfit(unfit)) }
    }
}

/// Gets every [`Happening`]; it must not block.
pub type Observe = Arc<dyn Fn(&Happening) + Send + Sync>;

/// Something that happened to events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// A batch was applied; its acknowledgements follow.
    Applied {
        /// How many events.
        events: usize,
        /// How long that took.
        took: Duration,
    },
    /// The stream dropped events before they were applied: they are lost. Of several readers of one durable consumer each is
    /// told of a loss.
    Dropped {
        /// How many, at least.
        events: u64,
    },
    /// Something happened to one event of this type; `None` is one that is not known.
    One(Option<EventType>, Outcome),
}

/// What became of one event, other than that it was applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged without effect, for its chat server is out for the moment.
    Outage,
    /// It was acknowledged without effect, for its type is unknown.
    Unknown,
    /// It became a dead letter because it can never be applied.
    Malformed,
    /// It became a dead letter because applying it failed too often.
    GivenUp,
    /// It is delivered again later because applying it failed.
    Delayed,
    /// It is delivered again later because its community has more waiting than its share.
    PutOff,
    /// The store or its community's rows are at fault; it waits.
    Waiting,
    /// As a dead letter it could not be kept; it is delivered again later.
    NotBuried,
    /// Its acknowledgement was lost; it is delivered again, and its effect is known by its id.
    NotAcknowledged,
}

/// One event and how it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The event.
    pub event: Event,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// How often it has been delivered, this time included: again after a failure, a lost acknowledgement or being put off.
    pub deliveries: u32,
    /// The trace that it is part of, as its header `traceparent` says; at most 128 characters, otherwise as it came.
    pub traceparent: Option<String>,
}

/// Why events were not applied. None of them was, whatever the reason. Whose fault that is, is found out by the rule of
/// [`fault`](super::fault).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The store is out of reach, full or refuses writes: the events are tried again for as long as it takes, and none becomes
    /// a dead letter for it.
    #[error("the store is out of reach: {0}")]
    Unavailable(StoreFailure),
    /// Others were in the way, who hold a lock: the events are tried again for as long as it takes.
    #[error("others were in the way: {0}")]
    Busy(StoreFailure),
    /// Something failed that may be the store's fault, the community's or an event's. An event whose own it is is delivered
    /// again, up to the bound.
    #[error("the events could not be applied: {0}")]
    Failed(StoreFailure),
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
    /// Events that the stream dropped before they were applied, since this reader was opened. Above 0, events were lost.
    pub dropped: u64,
}

/// A reader of the stream of events.
#[derive(Debug, Clone)]
pub struct Consumer(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) connection: Connection,
    pub(super) context: Context,
    pub(super) config: ConsumerConfig,
    pub(super) consumer: PullConsumer,
    pub(super) stream_created: OffsetDateTime,
    pub(super) losses: Losses,
}

impl Inner {
    pub(super) fn observe(&self, event_type: Option<EventType>, outcome: Outcome) {
        (self.config.observe)(&Happening::One(event_type, outcome));
    }
}

impl Consumer {
    /// Makes the streams where they are missing, and the durable consumer. What is there already is looked at, and taken as it
    /// is or refused as `config.unfit` says.
    ///
    /// # Errors
    /// [`ConsumerError`] says which of them could not be had, or is not fit for it.
    pub async fn open(connection: &Connection, config: ConsumerConfig) -> Result<Self, ConsumerError> {
        let context = jetstream::new(connection.client().clone());
        let events = stream::events(&context, &config.bounds).await?;
        stream::dead_letters(&context, &config.bounds).await?;
        config.unfit.judge(stream::inspect(connection, &config.durable).await?)?;
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
        let losses = Losses::default();
        let delivered = consumer.cached_info().delivered;
        let first = events.cached_info().state.first_sequence;
        losses.stands(delivered.consumer_sequence, delivered.stream_sequence, first);
        let connection = connection.clone();
        Ok(Self(Arc::new(Inner { connection, context, config, consumer, stream_created, losses })))
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
            dropped: self.0.losses.total(),
        })
    }

    async fn age(&self, sequence: u64) -> Option<Duration> {
        let stream = self.0.context.get_stream(stream::EVENTS).await.ok()?;
        let message = stream.get_raw_message(sequence).await.ok()?;
        Some(Duration::try_from(OffsetDateTime::now_utc() - message.time).unwrap_or_default())
    }

    /// Begins to read. Every batch is given to `apply`, which must have applied all of it, durably, when it answers `Ok`,
    /// and none of it when it does not. Events arrive in no particular order, and may arrive again. `probe` is asked when a
    /// batch was not applied.
    pub fn start<A, F>(&self, apply: A, probe: Probe) -> Reading
    where
        A: Fn(Vec<Delivered>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), ApplyError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let apply = Arc::new(apply);
        let lanes = self.0.config.lanes.clamp(1, 16);
        let taking = Arc::new(Taking::new(lanes));
        let failures = Arc::new(Failures::default());
        let faults = Arc::new(Faults::default());
        let mut tasks = JoinSet::new();
        for _ in 0..lanes {
            let lane = Lane {
                inner: Arc::clone(&self.0),
                apply: Arc::clone(&apply),
                probe: Arc::clone(&probe),
                taking: Arc::clone(&taking),
                failures: Arc::clone(&failures),
                faults: Arc::clone(&faults),
                stop: stop.clone(),
            };
            tasks.spawn(lane.run());
        }
        let reader = Reader { inner: Arc::clone(&self.0), taking, stop: stop.clone(), acks: OnceLock::new() };
        tasks.spawn(reader.run());
        let (telling, stopped) = (Arc::clone(&faults), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = telling.tell() => {}
                () = stopped.cancelled() => {}
            }
            Ok(())
        });
        Reading { tasks, stop, faults }
    }
}

/// Reading that is under way.
#[derive(Debug)]
pub struct Reading {
    tasks: JoinSet<Result<(), ConsumerError>>,
    stop: CancellationToken,
    faults: Arc<Faults>,
}

impl Reading {
    /// The faults that keep events from being applied at the moment: at most one of the store, those of communities by their
    /// code.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.faults.now()
    }

    /// Waits until reading can go on no more: the stream is gone or was made anew. It may be waited for again after
    /// being dropped.
    pub async fn ended(&mut self) -> ConsumerError {
        loop {
            match self.tasks.join_next().await {
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
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(deadline, finished).await.map_err(|_| ConsumerError::Unfinished(deadline))
    }
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
    /// What is there can lose events, or does not take or read them.
    #[error("{}", unfit(.0))]
    Unfit(Vec<Finding>),
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

fn unfit(findings: &[Finding]) -> String {
    let each: Vec<String> = findings.iter().map(|finding| format!("{}: {finding}", finding.place)).collect();
    format!("events can be lost: {}", each.join("; "))
}
