//! An event as it is applied, and what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use muster_domain::{Event, EventId, EventType};

use super::fault::StoreFailure;

/// Gets every [`ConsumerEvent`]; it must not block.
pub type Observe = Arc<dyn Fn(&ConsumerEvent) + Send + Sync>;

/// Something that happened while events were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// A batch was applied; its acknowledgements follow.
    Applied {
        /// How many events.
        events: usize,
        /// How long that took.
        took: Duration,
    },
    /// The stream dropped events before they were applied: they are lost. Each reader of a durable consumer reports each loss.
    Dropped {
        /// How many, at least.
        events: u64,
    },
    /// The outcome of one event of this type; `None` is an unknown type.
    Outcome(Option<EventType>, Outcome),
}

/// What became of one event that was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged without effect: its chat server is unavailable for the moment.
    Outage,
    /// Acknowledged without effect: its type is unknown.
    Unknown,
    /// Made a dead letter: it can never be applied.
    Malformed,
    /// Made a dead letter: applying it failed too often.
    GivenUp,
    /// Delivered again after a delay: applying it failed.
    Retried,
    /// Delivered again later: its community's queue is full.
    Deferred,
    /// Waits: the store or its community's rows are at fault.
    Waiting,
    /// Delivered again after a delay: it could not be stored as a dead letter.
    DeadLetterFailed,
    /// Its acknowledgement was lost: it is delivered again, and recognised by its id.
    NotAcknowledged,
}

/// An event and how it was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The event.
    pub event: Event,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// How often it was delivered, this time included: again after a failure, a lost acknowledgement or a deferral.
    pub deliveries: u32,
}

/// Why the events of a shard were not applied. None of that shard's was, whatever the reason. [`fault`](super::fault) decides who
/// is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The store is unreachable, full or read-only: the events are retried for as long as it takes, and none becomes a dead
    /// letter.
    #[error("the store is unavailable: {0}")]
    Unavailable(StoreFailure),
    /// Another transaction holds a lock: the events are retried for as long as it takes.
    #[error("another transaction holds a lock: {0}")]
    Busy(StoreFailure),
    /// The store, the community or an event may be at fault. An event that is at fault itself is delivered again, up to the
    /// limit.
    #[error("the events could not be applied: {0}")]
    Failed(StoreFailure),
    /// This event can never be applied.
    #[error("event {0} can never be applied: {1}")]
    Poison(EventId, String),
}
