//! Events that can never be applied, kept with the reason for whoever repairs them.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::message::Info;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::consumer::ConsumerError;
use super::stream::DEAD_SUBJECT;
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
/// The header with the whole payload's size, where it had to be cut to fit beside the headers.
pub const CUT_FROM: &str = "Muster-Cut-From";
/// The header by which the broker knows a copy that it has already.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// What the headers may need of a message's room.
const HEADROOM: usize = 2 * 1024;

/// Copies a message to the dead letters, and waits until the broker has it.
pub(crate) async fn bury(
    context: &Context,
    max_payload: usize,
    stream_created: OffsetDateTime,
    message: &async_nats::Message,
    info: &Info<'_>,
    reason: &str,
    timeout: Duration,
) -> Result<(), ConsumerError> {
    let mut headers = HeaderMap::new();
    let mut put = |name: &'static str, value: &str| headers.insert(name, header::line(value).as_str());
    // The stream's age keeps apart what bears one sequence in two streams of one name.
    let stream = stream_created.unix_timestamp_nanos();
    put(MESSAGE_ID, &format!("{}-{stream}-{}", info.stream, info.stream_sequence));
    put(REASON, reason);
    put(SUBJECT, &message.subject);
    put(SEQUENCE, &info.stream_sequence.to_string());
    put(TIME, &info.published.format(&Rfc3339).unwrap_or_default());
    put(DELIVERIES, &info.delivered.to_string());
    let room = max_payload.saturating_sub(HEADROOM);
    let payload = if message.payload.len() > room {
        put(CUT_FROM, &message.payload.len().to_string());
        message.payload.slice(..room)
    } else {
        message.payload.clone()
    };
    let publish = async {
        let sent = context.publish_with_headers(DEAD_SUBJECT, headers, payload).await?;
        sent.await
    };
    match tokio::time::timeout(timeout, publish).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(ConsumerError::Bury(error.into())),
        Err(late) => Err(ConsumerError::Bury(late.into())),
    }
}
