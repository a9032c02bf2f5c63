//! A reader of the stream of events: opened, started, and asked how far it is behind.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream::stream::RawMessageErrorKind;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::durable::Durable;
pub use super::durable::{ConsumerConfig, MAX_LANES, Unfit};
use super::error::Cause;
pub use super::error::ConsumerError;
use super::fault::{Fault, Faults, Probe};
use super::lane::{Failures, Lane};
pub use super::outcome::{ApplyError, ConsumerEvent, Delivered, Observe, Outcome};
use super::reader::Reader;
use super::reading::Reading;
use super::shared_queue::SharedQueue;
use super::stream::filled_percent;
use super::subjects::{EVENTS, EVENTS_SUBJECTS};
use crate::connection::Connection;

/// How far a consumer is behind the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Events that were not delivered yet.
    pub pending: u64,
    /// Events that were delivered and not acknowledged.
    pub unacknowledged: u64,
    /// Events that were delivered more than once and not acknowledged.
    pub redelivered: u64,
    /// How long ago the stream stored the oldest event that is not acknowledged; `None` when there is none.
    pub oldest: Option<Duration>,
    /// Events that the stream dropped before they were applied, since this consumer was opened. Above 0, events were lost.
    pub dropped: u64,
    /// How full the stream is, in percent of its bound. It keeps events that are applied, too, until they are too old; full, it
    /// refuses new ones.
    pub filled_percent: u64,
}

/// A reader of the stream of events.
#[derive(Debug, Clone)]
pub struct Consumer(Arc<Durable>);

impl Consumer {
    /// Creates the streams if they are missing, and the durable consumer. What exists is inspected, and used as it is or
    /// refused as `config.unfit` says.
    ///
    /// # Errors
    /// [`ConsumerError`] says which of them is not available, or can lose events.
    pub async fn open(connection: &Connection, config: ConsumerConfig) -> Result<Self, ConsumerError> {
        Ok(Self(Arc::new(Durable::open(connection, config).await?)))
    }

    /// Whether the stream, as it was set when it was last looked at, may deliver an event again whose id is forgotten. While it is read
    /// from, it is looked at every five seconds.
    #[must_use]
    pub fn may_repeat_forgotten(&self) -> bool {
        self.0.may_repeat_forgotten.load(Ordering::Relaxed)
    }

    /// How far the consumer is behind.
    ///
    /// # Errors
    /// [`ConsumerError`] when the broker does not answer.
    pub async fn lag(&self) -> Result<Lag, ConsumerError> {
        let info = self.0.consumer.get_info().await.map_err(|error| ConsumerError::Lag(error.into()))?;
        let stream = self
            .0
            .check_stream()
            .await?
            .ok_or_else(|| ConsumerError::Lag("the stream does not answer".into()))?;
        let unacknowledged = u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
        let oldest = info.ack_floor.stream_sequence.saturating_add(1).max(stream.state.first_sequence);
        let is_empty = info.num_pending == 0 && unacknowledged == 0;
        let oldest = if is_empty { None } else { self.age(oldest).await? };
        Ok(Lag {
            pending: info.num_pending,
            unacknowledged,
            redelivered: u64::try_from(info.num_redelivered).unwrap_or(u64::MAX),
            oldest,
            dropped: self.0.losses.total(),
            filled_percent: filled_percent(&stream),
        })
    }

    /// The age of the first event from this sequence on, if there is one.
    async fn age(&self, sequence: u64) -> Result<Option<Duration>, ConsumerError> {
        let failed = |cause: Cause| ConsumerError::Lag(cause);
        let stream = self.0.context.get_stream_no_info(EVENTS).await.map_err(|error| failed(error.into()))?;
        match stream.get_first_raw_message_by_subject(EVENTS_SUBJECTS, sequence).await {
            Ok(message) => {
                Ok(Some(Duration::try_from(OffsetDateTime::now_utc() - message.time).unwrap_or_default()))
            }
            Err(error) if matches!(error.kind(), RawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Starts to read. Every batch is given to `apply`, which must have applied all of it, durably, when it returns `Ok`, and
    /// none of it otherwise. Events arrive in no particular order, and may arrive again. `probe` is called when a batch was
    /// not applied.
    pub fn start<A, F>(&self, apply: A, probe: Probe) -> ConsumerHandle
    where
        A: Fn(Vec<Delivered>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), ApplyError>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let apply = Arc::new(apply);
        let lanes = self.0.config.lanes.clamp(1, MAX_LANES);
        let queue = Arc::new(SharedQueue::new(lanes));
        let failures = Arc::new(Failures::default());
        let faults = Arc::new(Faults::default());
        let mut tasks = JoinSet::new();
        for _ in 0..lanes {
            let lane = Lane {
                durable: Arc::clone(&self.0),
                apply: Arc::clone(&apply),
                probe: Arc::clone(&probe),
                queue: Arc::clone(&queue),
                failures: Arc::clone(&failures),
                faults: Arc::clone(&faults),
                stop: stop.clone(),
            };
            tasks.spawn(lane.run());
        }
        let reading = Arc::new(Reading::default());
        tasks.spawn(Reader::new(Arc::clone(&self.0), queue, stop.clone(), Arc::clone(&reading)).run());
        let (logged, stopped) = (Arc::clone(&faults), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = logged.log_changes() => {}
                () = stopped.cancelled() => {}
            }
            Ok(())
        });
        ConsumerHandle { consumer: self.clone(), tasks, stop, faults, reading }
    }
}

/// A consumer that was started.
#[derive(Debug)]
pub struct ConsumerHandle {
    consumer: Consumer,
    tasks: JoinSet<Result<(), ConsumerError>>,
    stop: CancellationToken,
    faults: Arc<Faults>,
    reading: Arc<Reading>,
}

impl ConsumerHandle {
    /// Whether an event may be delivered again whose id is forgotten: see [`Consumer::may_repeat_forgotten`].
    #[must_use]
    pub fn may_repeat_forgotten(&self) -> bool {
        self.consumer.may_repeat_forgotten()
    }

    /// Whether events can be read: false when the broker has given none, nor said that there are none, for 15 seconds.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        self.reading.is_well()
    }

    /// The faults that currently keep events from being applied: at most one of the store, those of communities by their code.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.faults.current()
    }

    /// Waits until the consumer cannot go on: the stream or the durable consumer was deleted. Cancellation safe.
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

    /// Reads no more events, finishes and acknowledges the batches that are being applied.
    ///
    /// # Errors
    /// [`ConsumerError::Unfinished`] when that takes longer than `deadline`: unacknowledged events are delivered again.
    pub async fn stop(mut self, deadline: Duration) -> Result<(), ConsumerError> {
        self.stop.cancel();
        let finished = async { while self.tasks.join_next().await.is_some() {} };
        tokio::time::timeout(deadline, finished).await.map_err(|_| ConsumerError::Unfinished(deadline))
    }
}
