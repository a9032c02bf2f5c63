//! The streams: created if they are missing, never altered, and checked for being replaced.

use std::time::Duration;

use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};

use super::error::ConsumerError;
use super::fitness::{self, Finding, Place};
use super::subjects::{DEAD_LETTERS, DEAD_SUBJECT, EVENTS, EVENTS_SUBJECTS};
use crate::connection::Connection;

/// How large the streams may grow that are created here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamBounds {
    /// The most bytes of events. At this size the stream refuses what the gateway publishes, and drops nothing.
    pub events_bytes: i64,
    /// The most bytes of dead letters. At this size the stream refuses further ones: their events are retried, none is lost.
    pub dead_bytes: i64,
    /// How long events are kept.
    pub events_age: Duration,
    /// How many servers store each stream.
    pub replicas: usize,
}

impl Default for StreamBounds {
    /// 1 GiB of events for 7 days, 256 MiB of dead letters for ever, on one server.
    fn default() -> Self {
        Self { events_bytes: 1 << 30, dead_bytes: 256 << 20, events_age: fitness::ADVISED_AGE, replicas: 1 }
    }
}

/// Creates the streams that are missing, and returns that of events.
pub(super) async fn open(context: &Context, bounds: &StreamBounds) -> Result<Stream, ConsumerError> {
    let events = find_or_create(context, Place::Events, events_config(bounds)).await?;
    find_or_create(context, Place::DeadLetters, dead_letters_config(bounds)).await?;
    Ok(events)
}

fn events_config(bounds: &StreamBounds) -> Config {
    let config = config(EVENTS, EVENTS_SUBJECTS, bounds.events_bytes, bounds.replicas);
    Config { max_age: bounds.events_age, ..config }
}

fn dead_letters_config(bounds: &StreamBounds) -> Config {
    config(DEAD_LETTERS, DEAD_SUBJECT, bounds.dead_bytes, bounds.replicas)
}

/// Judges the settings of the streams and of the consumer `durable` that exist. What is missing is created as it should be, unless
/// another stream takes its subjects. The ids of applied events are remembered for `remember`.
///
/// # Errors
/// [`ConsumerError::Stream`] or [`ConsumerError::Durable`] when the server does not answer.
pub async fn inspect(
    connection: &Connection,
    durable: &str,
    remember: Duration,
) -> Result<Vec<Finding>, ConsumerError> {
    let context = jetstream::new(connection.client().clone());
    let mut findings = Vec::new();
    if let Some(events) = find(&context, EVENTS).await? {
        findings.extend(fitness::judge_events(&events.cached_info().config, remember));
        match events.consumer_info(durable).await {
            Ok(info) => findings.extend(fitness::judge_consumer(durable, &info.config)),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {}
            Err(error) => {
                return Err(ConsumerError::Durable(durable.to_owned(), error.into()));
            }
        }
    } else {
        findings.extend(foreign(&context, Place::Events, EVENTS_SUBJECTS).await);
    }
    match find(&context, DEAD_LETTERS).await? {
        Some(dead) => findings.extend(fitness::judge_dead_letters(&dead.cached_info().config)),
        None => findings.extend(foreign(&context, Place::DeadLetters, DEAD_SUBJECT).await),
    }
    Ok(findings)
}

/// The stream that takes a missing stream's subjects, if there is one and this user may ask.
pub(crate) async fn foreign(context: &Context, place: Place, subjects: &str) -> Option<Finding> {
    let name = context.stream_by_subject(subjects).await.ok()?;
    Some(fitness::foreign(place, subjects, &name))
}

/// The stream of this name, if there is one.
pub(crate) async fn find(context: &Context, name: &str) -> Result<Option<Stream>, ConsumerError> {
    match context.get_stream(name).await {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if is_missing(&error.kind()) => Ok(None),
        Err(error) => Err(ConsumerError::Stream(name.to_owned(), error.into())),
    }
}

fn config(name: &str, subject: &str, max_bytes: i64, replicas: usize) -> Config {
    Config {
        name: name.to_owned(),
        subjects: vec![subject.to_owned()],
        max_bytes,
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        // A full stream refuses new messages; it does not drop unread ones.
        discard: DiscardPolicy::New,
        num_replicas: replicas,
        duplicate_window: fitness::ADVISED_WINDOW,
        ..Config::default()
    }
}

/// The stream of `config`'s name, which is created if it is missing.
pub(crate) async fn find_or_create(
    context: &Context,
    place: Place,
    config: Config,
) -> Result<Stream, ConsumerError> {
    if let Some(stream) = find(context, &config.name).await? {
        return Ok(stream);
    }
    let (name, subjects) = (config.name.clone(), config.subjects.join(","));
    tracing::info!(stream = %name, "the stream is missing and is created");
    let error = match context.create_stream(config).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    // That another stream takes its subjects does not pass by waiting.
    match foreign(context, place, &subjects).await {
        Some(finding) if finding.value != name => Err(ConsumerError::Unfit(vec![finding])),
        _ => Err(ConsumerError::Stream(name, error.into())),
    }
}

pub(super) fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// How full a stream is, by bytes or by messages, whichever is nearer to its bound: 0 to 100, and 0 without a bound.
pub(crate) fn filled_percent(info: &Info) -> u64 {
    let of = |held: u64, bound: i64| match u64::try_from(bound) {
        Ok(bound) if bound > 0 => held.saturating_mul(100) / bound,
        _ => 0,
    };
    let (state, config) = (&info.state, &info.config);
    of(state.bytes, config.max_bytes).max(of(state.messages, config.max_messages)).min(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMEMBER: Duration = Duration::from_hours(30 * 24);

    fn problems(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().filter(|finding| finding.problem().is_some()).map(|finding| finding.setting).collect()
    }

    #[test]
    fn streams_created_with_three_replicas_are_fine_and_one_replica_is_unwise() {
        let three = StreamBounds { replicas: 3, ..StreamBounds::default() };
        assert!(problems(&fitness::judge_events(&events_config(&three), REMEMBER)).is_empty());
        assert!(problems(&fitness::judge_dead_letters(&dead_letters_config(&three))).is_empty());
        let findings = fitness::judge_events(&events_config(&StreamBounds::default()), REMEMBER);
        assert_eq!(problems(&findings), ["num_replicas"]);
        assert!(!findings.iter().any(Finding::is_unfit));
    }
}
