//! The durable consumer as the broker has it: its configuration, its streams and its acknowledgements.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::Info;
use async_nats::jetstream::{self, Context};
use muster_domain::{EventType, MaxClockSkew};
use time::OffsetDateTime;

use super::ack::Acks;
use super::envelope::DEFAULT_MAX_BYTES;
use super::error::ConsumerError;
use super::fitness::{Finding, outlives_ids};
use super::losses::Losses;
use super::outcome::{ConsumerEvent, Observe, Outcome};
use super::stream::{self, StreamBounds};
use super::subjects::{EVENTS, EVENTS_SUBJECTS};
use crate::connection::Connection;

/// The most batches that are applied at once.
pub const MAX_LANES: usize = 16;

/// How events are read.
#[derive(Clone)]
pub struct ConsumerConfig {
    /// The consumer's name on the stream. All replicas of a worker share one.
    pub durable: String,
    /// The most events that are applied together: 1 to [`Event::MAX_BATCH`](muster_domain::Event::MAX_BATCH).
    pub batch: usize,
    /// How many batches are applied at once: 1 to [`MAX_LANES`]. Of one community, one fewer, but at least one.
    pub lanes: usize,
    /// How long the broker waits for an acknowledgement or a progress report before it delivers an event again.
    pub ack_wait: Duration,
    /// How many events may be unacknowledged at once, over all replicas: those in queues and deferred ones, too. How far one
    /// community's flood may reach before it delays the others.
    pub max_ack_pending: i64,
    /// After how many failures to apply it an event becomes a dead letter.
    pub max_deliveries: u32,
    /// The largest event in bytes, within [`MAX_BYTES`](super::envelope::MAX_BYTES); a larger one becomes a dead letter.
    pub max_bytes: usize,
    /// How far ahead an event's time may be of this process's clock, or of the broker's when it stored the event, whichever is
    /// later; one further ahead becomes a dead letter.
    pub max_clock_skew: MaxClockSkew,
    /// For how long the ids of applied events are remembered.
    pub remember: Duration,
    /// How large the streams are created if they are missing.
    pub bounds: StreamBounds,
    /// What to do if those that exist can lose events.
    pub unfit: Unfit,
    /// Called with everything that happens.
    pub observe: Observe,
}

impl Default for ConsumerConfig {
    /// Three batches of 1000 at once as `muster-worker`; 30 s to acknowledge, 20 deliveries, 256 KiB, 10 minutes ahead, ids
    /// remembered for 30 days, streams that can lose events refused, nothing observed.
    fn default() -> Self {
        Self {
            durable: "muster-worker".to_owned(),
            batch: 1000,
            lanes: 3,
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 500_000,
            max_deliveries: 20,
            max_bytes: DEFAULT_MAX_BYTES,
            max_clock_skew: MaxClockSkew::default(),
            remember: Duration::from_hours(30 * 24),
            bounds: StreamBounds::default(),
            unfit: Unfit::Refuse,
            observe: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for ConsumerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsumerConfig").field("durable", &self.durable).finish_non_exhaustive()
    }
}

/// What to do with streams, or a consumer, that exist and can lose events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Refuse them.
    Refuse,
    /// Log a warning.
    Warn,
}

impl Unfit {
    /// Logs the settings that are unwise, and refuses or logs those that are unfit.
    fn judge(self, findings: Vec<Finding>) -> Result<(), ConsumerError> {
        let (refused, others): (Vec<Finding>, Vec<Finding>) =
            findings.into_iter().partition(|finding| finding.is_unfit() && self == Self::Refuse);
        others.iter().for_each(Finding::warn);
        if refused.is_empty() { Ok(()) } else { Err(ConsumerError::Unfit(refused)) }
    }
}

/// A durable consumer of the stream of events.
pub(super) struct Durable {
    pub(super) connection: Connection,
    pub(super) context: Context,
    pub(super) config: ConsumerConfig,
    pub(super) consumer: PullConsumer,
    pub(super) stream_created: OffsetDateTime,
    /// Whether the stream keeps events for longer than their ids are remembered.
    pub(super) may_repeat_forgotten: AtomicBool,
    pub(super) losses: Losses,
    pub(super) acks: Acks,
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Durable {
    pub(super) async fn open(connection: &Connection, config: ConsumerConfig) -> Result<Self, ConsumerError> {
        let context = jetstream::new(connection.client().clone());
        let events = stream::open(&context, &config.bounds).await?;
        config.unfit.judge(stream::inspect(connection, &config.durable, config.remember).await?)?;
        let wanted = Config {
            durable_name: Some(config.durable.clone()),
            description: Some("Applies the chat gateway's events".to_owned()),
            deliver_policy: DeliverPolicy::All,
            replay_policy: ReplayPolicy::Instant,
            ack_policy: AckPolicy::Explicit,
            ack_wait: config.ack_wait,
            // Muster limits deliveries itself, so that an event that is given up becomes a dead letter.
            max_deliver: -1,
            filter_subject: EVENTS_SUBJECTS.to_owned(),
            max_ack_pending: config.max_ack_pending,
            ..Config::default()
        };
        let consumer = events
            .create_consumer(wanted)
            .await
            .map_err(|cause| ConsumerError::Durable(config.durable.clone(), cause.into()))?;
        let (stream, delivered) = (events.cached_info(), consumer.cached_info().delivered);
        let losses = Losses::default();
        losses.consumer_at(
            delivered.consumer_sequence,
            delivered.stream_sequence,
            stream.state.first_sequence,
        );
        let acks = Acks::new(connection.client().clone(), config.ack_wait, Arc::clone(&config.observe));
        let may_repeat_forgotten = AtomicBool::new(outlives_ids(stream.config.max_age, config.remember));
        let (connection, stream_created) = (connection.clone(), stream.created);
        Ok(Self { connection, context, config, consumer, stream_created, may_repeat_forgotten, losses, acks })
    }

    pub(super) fn observe(&self, event_type: Option<EventType>, outcome: Outcome) {
        (self.config.observe)(&ConsumerEvent::Outcome(event_type, outcome));
    }

    /// The stream, which must be the one that was opened; `None` if the broker does not answer.
    pub(super) async fn check_stream(&self) -> Result<Option<Info>, ConsumerError> {
        match self.context.get_stream(EVENTS).await {
            Ok(stream) if stream.cached_info().created == self.stream_created => {
                Ok(Some(stream.cached_info().clone()))
            }
            Ok(_) => Err(ConsumerError::StreamReplaced),
            Err(error) if stream::is_missing(&error.kind()) => Err(ConsumerError::StreamGone),
            // A stream that cannot be reached is not one that was deleted.
            Err(_) => Ok(None),
        }
    }

    /// Fails if the consumer was deleted.
    pub(super) async fn check_consumer(&self) -> Result<(), ConsumerError> {
        match self.consumer.get_info().await {
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Err(ConsumerError::DurableGone),
            // A consumer that cannot be reached is not one that was deleted.
            _ => Ok(()),
        }
    }
}
