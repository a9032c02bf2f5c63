//! Events that can never be applied, stored with the reason; and how an operator reads, replays and drops them.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::{Info, StreamMessage};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use muster_domain::{PageLimit, TraceParent};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::durable::Durable;
use super::error::{Cause, ConsumerError};
use super::stream::filled_percent;
use super::subjects::{DEAD_LETTERS, DEAD_SUBJECT, EVENTS, PREFIX};
use crate::connection::Connection;
use crate::header;

/// The header with the reason.
pub const REASON: &str = "Muster-Reason";
/// The header with the subject that the event was published on.
pub const SUBJECT: &str = "Muster-Subject";
/// The header with the event's sequence in its stream.
pub const SEQUENCE: &str = "Muster-Sequence";
/// The header with the time at which the stream took the event.
pub const TIME: &str = "Muster-Time";
/// The header with how often the event was delivered.
pub const DELIVERIES: &str = "Muster-Deliveries";
/// The header with the whole payload's size in bytes, if it was truncated to fit beside the headers.
pub const TRUNCATED_FROM: &str = "Muster-Cut-From";
/// The header by which the broker recognises a copy that it has already.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// How long the broker may take to store a dead letter.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Copies a message to the dead letters, and waits until the broker has stored it.
pub(super) async fn publish_dead_letter(
    durable: &Durable,
    message: &async_nats::Message,
    info: &Info<'_>,
    reason: &str,
) -> Result<(), ConsumerError> {
    let max_payload = durable.connection.max_payload();
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| headers.insert(name, header::line(value).as_str());
    // The stream's creation time tells apart messages of the same sequence in two streams of one name.
    let stream = durable.stream_created.unix_timestamp_nanos();
    put(MESSAGE_ID, &format!("{}-{stream}-{}", info.stream, info.stream_sequence));
    put(REASON, reason);
    put(SUBJECT, &message.subject);
    put(SEQUENCE, &info.stream_sequence.to_string());
    put(TIME, &info.published.format(&Rfc3339).unwrap_or_default());
    put(DELIVERIES, &info.delivered.to_string());
    header::set_traceparent(&mut headers, header::traceparent(message.headers.as_ref()).as_ref());
    let mut payload = message.payload.clone();
    if bytes_of(&headers).saturating_add(payload.len()) > max_payload {
        headers.insert(TRUNCATED_FROM, payload.len().to_string());
        payload.truncate(max_payload.saturating_sub(bytes_of(&headers)));
    }
    let publish = async {
        let sent = durable.context.publish_with_headers(DEAD_SUBJECT, headers, payload).await?;
        sent.await
    };
    match tokio::time::timeout(PUBLISH_TIMEOUT, publish).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(ConsumerError::DeadLetter(error.into())),
        Err(late) => Err(ConsumerError::DeadLetter(late.into())),
    }
}

/// The size of headers in a message: a line for the version, a line for each, an empty one.
fn bytes_of(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        values.iter().map(|value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + ": \r\n".len())
    });
    lines.sum::<usize>() + "NATS/1.0\r\n\r\n".len()
}

/// One dead letter, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its sequence in the stream of dead letters, which identifies it.
    pub sequence: u64,
    /// When it became one.
    pub at: OffsetDateTime,
    /// Why.
    pub reason: String,
    /// The subject that the event was published on.
    pub subject: String,
    /// The event's sequence in its own stream.
    pub event_sequence: Option<u64>,
    /// When that stream took the event.
    pub event_at: Option<OffsetDateTime>,
    /// How often the event was delivered.
    pub deliveries: Option<u64>,
    /// The size of the stored payload in bytes.
    pub bytes: usize,
    /// The size of the whole payload, if it was truncated.
    pub truncated_from: Option<u64>,
    /// The trace that the event belongs to, and belongs to again when it is replayed.
    pub traceparent: Option<TraceParent>,
}

impl DeadLetter {
    fn of(message: &StreamMessage) -> Self {
        let header = |name: &str| message.headers.get(name).map(|value| value.as_str());
        let number = |name| header(name).and_then(|text| text.parse().ok());
        Self {
            sequence: message.sequence,
            at: message.time,
            reason: header(REASON).unwrap_or_default().to_owned(),
            subject: header(SUBJECT).unwrap_or_default().to_owned(),
            event_sequence: number(SEQUENCE),
            event_at: header(TIME).and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()),
            deliveries: number(DELIVERIES),
            bytes: message.payload.len(),
            truncated_from: number(TRUNCATED_FROM),
            traceparent: header::traceparent(Some(&message.headers)),
        }
    }
}

/// How much the stream of dead letters holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptDeadLetters {
    /// How many there are.
    pub count: u64,
    /// How full the stream is, in percent of its bound. Full, it refuses what fails, and that is tried again and again.
    pub filled_percent: u64,
}

/// The stream of dead letters, for operators.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    context: Context,
    stream: Stream,
    max_payload: usize,
    // It would outlive the one who looks after the link.
    _connection: Connection,
}

impl DeadLetters {
    /// Opens the stream, which the worker creates at its first start.
    ///
    /// # Errors
    /// [`DeadLetterError::Unreachable`] when it does not exist or this user may not read it.
    pub async fn open(connection: &Connection) -> Result<Self, DeadLetterError> {
        let mut context = jetstream::new(connection.client().clone());
        context.set_timeout(connection.request_timeout());
        let stream = context.get_stream(DEAD_LETTERS).await.map_err(unreachable)?;
        let max_payload = connection.max_payload();
        Ok(Self { context, stream, max_payload, _connection: connection.clone() })
    }

    /// How many there are, and how full the stream is.
    ///
    /// # Errors
    /// [`DeadLetterError::Unreachable`] when the broker does not answer.
    pub async fn kept(&self) -> Result<KeptDeadLetters, DeadLetterError> {
        let info = self.stream.get_info().await.map_err(unreachable)?;
        Ok(KeptDeadLetters { count: info.state.messages, filled_percent: filled_percent(&info) })
    }

    /// At most `limit` of them, oldest first, beginning at the sequence `from`; and the sequence to continue from, if there are more.
    ///
    /// # Errors
    /// [`DeadLetterError::Unreachable`] when the broker does not answer.
    pub async fn list(
        &self,
        from: u64,
        limit: PageLimit,
    ) -> Result<(Vec<DeadLetter>, Option<u64>), DeadLetterError> {
        let mut letters = Vec::new();
        let mut from = from.max(1);
        for _ in 0..limit.get() {
            let Some(message) = self.first_from(from).await? else { return Ok((letters, None)) };
            from = message.sequence.saturating_add(1);
            letters.push(DeadLetter::of(&message));
        }
        let next = self.first_from(from).await?.map(|message| message.sequence);
        Ok((letters, next))
    }

    async fn first_from(&self, sequence: u64) -> Result<Option<StreamMessage>, DeadLetterError> {
        match self.stream.get_first_raw_message_by_subject(DEAD_SUBJECT, sequence).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if is_not_found(&error.kind()) => Ok(None),
            Err(error) => Err(unreachable(error)),
        }
    }

    /// One of them, with its payload.
    ///
    /// # Errors
    /// [`DeadLetterError::NotFound`] when there is none with this sequence.
    pub async fn get(&self, sequence: u64) -> Result<(DeadLetter, Bytes), DeadLetterError> {
        match self.stream.get_raw_message(sequence).await {
            Ok(message) => Ok((DeadLetter::of(&message), message.payload)),
            Err(error) if is_not_found(&error.kind()) => Err(DeadLetterError::NotFound(sequence)),
            Err(error) => Err(unreachable(error)),
        }
    }

    /// Publishes the event again on its own subject and, once the broker has stored it, drops the dead letter. Returns the
    /// event's new sequence. An event that had been applied after all has no second effect, since it keeps its id. One that was
    /// truncated is read from the stream of events, as long as that has it.
    ///
    /// # Errors
    /// [`DeadLetterError::Truncated`] when the whole event is not available, [`DeadLetterError::NotAnEvent`] when its subject is not
    /// one of events, [`DeadLetterError::NotPublished`] when the broker does not store it: the dead letter then stays. A dead
    /// letter that could not be dropped in the end, [`DeadLetterError::NotDropped`], may be dropped by hand.
    pub async fn replay(&self, sequence: u64) -> Result<u64, DeadLetterError> {
        let (letter, kept) = self.get(sequence).await?;
        if !letter.subject.starts_with(PREFIX) {
            return Err(DeadLetterError::NotAnEvent(sequence));
        }
        let payload = match letter.truncated_from {
            None => kept,
            Some(whole) => self.original(&letter, &kept, whole).await.ok_or(DeadLetterError::Truncated {
                sequence,
                kept: kept.len(),
                whole,
            })?,
        };
        let not_published = |cause: Cause| DeadLetterError::NotPublished(sequence, cause);
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_EXPECTED_STREAM, EVENTS);
        header::set_traceparent(&mut headers, letter.traceparent.as_ref());
        if bytes_of(&headers).saturating_add(payload.len()) > self.max_payload {
            // It has no room for headers; which stream stored it is checked afterwards.
            headers = HeaderMap::new();
        }
        let sent = self.context.publish_with_headers(letter.subject, headers, payload).await;
        let taken = sent.map_err(|error| not_published(error.into()))?.await;
        let taken = taken.map_err(|error| not_published(error.into()))?;
        if taken.stream != EVENTS {
            return Err(not_published(format!("the stream {} stored it", taken.stream).into()));
        }
        self.drop(sequence).await?;
        Ok(taken.sequence)
    }

    /// The whole event of a truncated dead letter, if the stream of events still has it.
    async fn original(&self, letter: &DeadLetter, kept: &[u8], whole: u64) -> Option<Bytes> {
        let events = self.context.get_stream(EVENTS).await.ok()?;
        let event = events.get_raw_message(letter.event_sequence?).await.ok()?;
        // A stream that was created again has other events of the same sequences.
        let is_same = event.subject.as_str() == letter.subject
            && u64::try_from(event.payload.len()) == Ok(whole)
            && event.payload.starts_with(kept);
        is_same.then_some(event.payload)
    }

    /// Deletes one for good.
    ///
    /// # Errors
    /// [`DeadLetterError::NotFound`] when there is none with this sequence, [`DeadLetterError::NotDropped`] when the broker
    /// does not delete it.
    pub async fn drop(&self, sequence: u64) -> Result<(), DeadLetterError> {
        // The broker's error for a sequence that does not exist does not say so.
        self.get(sequence).await?;
        match self.stream.delete_message(sequence).await {
            Ok(_) => Ok(()),
            Err(cause) => Err(DeadLetterError::NotDropped(sequence, cause.into())),
        }
    }
}

fn is_not_found(kind: &LastRawMessageErrorKind) -> bool {
    matches!(kind, LastRawMessageErrorKind::NoMessageFound)
}

fn unreachable(cause: impl Into<Cause>) -> DeadLetterError {
    DeadLetterError::Unreachable(cause.into())
}

/// Why an operation on dead letters failed.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The stream does not answer.
    #[error(
        "the stream DEAD_LETTERS does not answer: check that the worker has run once and that this user may read it"
    )]
    Unreachable(#[source] Cause),
    /// No such dead letter.
    #[error("there is no dead letter {0}: `muster-worker deadletters list` shows those that exist")]
    NotFound(u64),
    /// The whole event is neither here nor in its stream.
    #[error(
        "dead letter {sequence} holds the first {kept} of {whole} bytes, as many as fit beside the headers, and the stream \
         EVENTS no longer has the whole event: have it published again, then drop the dead letter"
    )]
    Truncated {
        /// Which.
        sequence: u64,
        /// How many bytes are stored.
        kept: usize,
        /// How many the event has.
        whole: u64,
    },
    /// The subject is not one of events.
    #[error("the subject of dead letter {0} is not one of events: drop it, or publish the event by hand")]
    NotAnEvent(u64),
    /// The event was not published again; the dead letter stays.
    #[error(
        "the event of dead letter {0} was not published again: check that the stream EVENTS has room and that this user may publish events"
    )]
    NotPublished(u64, #[source] Cause),
    /// The dead letter was not deleted.
    #[error(
        "dead letter {0} was not deleted: check that this user may delete messages, then drop it; a replayed event has no second effect"
    )]
    NotDropped(u64, #[source] Cause),
}
