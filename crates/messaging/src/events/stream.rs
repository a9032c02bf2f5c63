//! The streams: made where they are missing, never altered, and watched for being made anew.

use std::time::Duration;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use time::OffsetDateTime;

use super::consumer::ConsumerError;

/// The stream that the gateway publishes to.
pub const EVENTS: &str = "EVENTS";
/// Its subjects.
pub const EVENTS_SUBJECTS: &str = "events.>";
/// The stream of what could not be applied.
pub const DEAD_LETTERS: &str = "DEAD_LETTERS";
/// Its subject.
pub const DEAD_SUBJECT: &str = "dead.events";

/// How large the streams may grow, where they are made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamBounds {
    /// The most bytes of events. When they are reached the gateway's publishing fails, and nothing is dropped unread.
    pub events_bytes: i64,
    /// The most bytes of dead letters. When they are reached no event can be given up, and nothing is lost.
    pub dead_bytes: i64,
    /// How long events are kept.
    pub events_age: Duration,
    /// On how many servers each stream lies.
    pub replicas: usize,
}

impl Default for StreamBounds {
    /// 1 GiB of events for 7 days, 256 MiB of dead letters for ever, on one server.
    fn default() -> Self {
        Self {
            events_bytes: 1 << 30,
            dead_bytes: 256 << 20,
            events_age: Duration::from_hours(7 * 24),
            replicas: 1,
        }
    }
}

/// The stream of this name, made by `bounds` where it is missing.
pub(crate) async fn events(context: &Context, bounds: &StreamBounds) -> Result<Stream, ConsumerError> {
    let config = Config {
        name: EVENTS.to_owned(),
        subjects: vec![EVENTS_SUBJECTS.to_owned()],
        max_bytes: bounds.events_bytes,
        max_age: bounds.events_age,
        ..made_here(bounds)
    };
    ensure(context, config).await
}

/// The stream of dead letters, made by `bounds` where it is missing.
pub(crate) async fn dead_letters(context: &Context, bounds: &StreamBounds) -> Result<Stream, ConsumerError> {
    let config = Config {
        name: DEAD_LETTERS.to_owned(),
        subjects: vec![DEAD_SUBJECT.to_owned()],
        max_bytes: bounds.dead_bytes,
        ..made_here(bounds)
    };
    ensure(context, config).await
}

fn made_here(bounds: &StreamBounds) -> Config {
    Config {
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        // Full, a stream refuses what comes; it does not drop what nobody has read.
        discard: DiscardPolicy::New,
        num_replicas: bounds.replicas,
        duplicate_window: Duration::from_mins(2),
        ..Config::default()
    }
}

async fn ensure(context: &Context, config: Config) -> Result<Stream, ConsumerError> {
    let name = config.name.clone();
    let unreachable = |cause: Box<dyn std::error::Error + Send + Sync>| ConsumerError::Stream { name, cause };
    match context.get_stream(&config.name).await {
        Ok(stream) => Ok(stream),
        Err(error) if is_missing(&error.kind()) => {
            tracing::info!(stream = %config.name, "the stream is missing and is made");
            context.create_stream(config).await.map_err(|error| unreachable(error.into()))
        }
        Err(error) => Err(unreachable(error.into())),
    }
}

fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Sees whether the stream is still the one that was made at `created`.
pub(crate) async fn still_there(
    context: &Context,
    created: OffsetDateTime,
) -> Result<Option<Info>, ConsumerError> {
    match context.get_stream(EVENTS).await {
        Ok(stream) if stream.cached_info().created == created => Ok(Some(stream.cached_info().clone())),
        Ok(_) => Err(ConsumerError::StreamReplaced),
        Err(error) if is_missing(&error.kind()) => Err(ConsumerError::StreamGone),
        // Not to be reached is not to be gone.
        Err(_) => Ok(None),
    }
}
