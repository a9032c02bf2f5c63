//! The streams: made where they are missing, never altered, and watched for being made anew.

use std::time::Duration;

use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use time::OffsetDateTime;

use super::consumer::ConsumerError;
use super::fitness::{self, Finding};
use crate::connection::Connection;

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
    ensure(context, events_config(bounds)).await
}

/// The stream of dead letters, made by `bounds` where it is missing.
pub(crate) async fn dead_letters(context: &Context, bounds: &StreamBounds) -> Result<Stream, ConsumerError> {
    ensure(context, dead_letters_config(bounds)).await
}

pub(super) fn events_config(bounds: &StreamBounds) -> Config {
    Config {
        name: EVENTS.to_owned(),
        subjects: vec![EVENTS_SUBJECTS.to_owned()],
        max_bytes: bounds.events_bytes,
        max_age: bounds.events_age,
        ..made_here(bounds)
    }
}

pub(super) fn dead_letters_config(bounds: &StreamBounds) -> Config {
    Config {
        name: DEAD_LETTERS.to_owned(),
        subjects: vec![DEAD_SUBJECT.to_owned()],
        max_bytes: bounds.dead_bytes,
        ..made_here(bounds)
    }
}

/// What the server has: the settings of the streams and of the consumer `durable`, each with how it is. What is missing has
/// none, for it is made as it should be.
///
/// # Errors
/// [`ConsumerError::Stream`] when the server does not say.
pub async fn inspect(connection: &Connection, durable: &str) -> Result<Vec<Finding>, ConsumerError> {
    let context = jetstream::new(connection.client().clone());
    let mut findings = Vec::new();
    if let Some(events) = find(&context, EVENTS).await? {
        findings.extend(fitness::of_events(&events.cached_info().config));
        match events.consumer_info(durable).await {
            Ok(info) => findings.extend(fitness::of_consumer(durable, &info.config)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
            Err(error) => {
                return Err(ConsumerError::Durable { name: durable.to_owned(), cause: error.into() });
            }
        }
    }
    if let Some(dead) = find(&context, DEAD_LETTERS).await? {
        findings.extend(fitness::of_dead_letters(&dead.cached_info().config));
    }
    Ok(findings)
}

/// The stream of this name, if there is one.
async fn find(context: &Context, name: &str) -> Result<Option<Stream>, ConsumerError> {
    match context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if is_missing(&error.kind()) => Ok(None),
        Err(error) => Err(ConsumerError::Stream { name: name.to_owned(), cause: error.into() }),
    }
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
    if let Some(stream) = find(context, &config.name).await? {
        return Ok(stream);
    }
    let name = config.name.clone();
    tracing::info!(stream = %name, "the stream is missing and is made");
    context.create_stream(config).await.map_err(|error| ConsumerError::Stream { name, cause: error.into() })
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
