//! A delivered message, and the event in it.

use std::sync::Arc;

use async_nats::jetstream::Message;
use bytes::Bytes;
use muster_domain::{Effect, Event, Stripe};
use time::OffsetDateTime;

use super::envelope::MAX_BYTES;
use super::outcome::Delivered;
use crate::header::traceparent;

/// One delivery of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    /// The message's sequence in the stream.
    pub(super) stream_sequence: u64,
    /// The delivery's sequence among all that the consumer made.
    pub(super) consumer_sequence: u64,
    /// How often the message was delivered, this time included.
    pub(super) deliveries: u32,
    pub(super) bytes: usize,
    /// When the stream stored the message, by the broker's clock.
    pub(super) stored: OffsetDateTime,
}

impl Delivery {
    /// `None` if no stream delivered the message.
    pub(super) fn of(message: &Message) -> Option<Self> {
        let info = message.info().ok()?;
        Some(Self {
            stream_sequence: info.stream_sequence,
            consumer_sequence: info.consumer_sequence,
            deliveries: u32::try_from(info.delivered).unwrap_or(u32::MAX),
            bytes: bytes_of(message),
            stored: info.published,
        })
    }

    /// Whether the message was delivered before.
    pub(super) fn is_repeated(&self) -> bool {
        self.deliveries > 1
    }
}

/// What waits in the queue.
pub(super) enum Item {
    /// An event to be applied.
    Event(TakenEvent),
    /// A message that can never be applied.
    Malformed {
        message: Arc<Message>,
        /// Why not.
        reason: String,
    },
}

/// An event from the queue until it is acknowledged, and the message that it came in.
pub(super) struct TakenEvent {
    pub(super) delivered: Delivered,
    pub(super) message: Arc<Message>,
}

impl TakenEvent {
    pub(super) fn new(mut event: Event, delivery: Delivery, message: Message) -> Self {
        event.traceparent = traceparent(message.headers.as_ref());
        let delivered =
            Delivered { event, sequence: delivery.stream_sequence, deliveries: delivery.deliveries };
        Self { delivered, message: kept(message) }
    }
}

/// A message that waits, with bytes of its own: those that were read are part of a buffer that also holds what came beside them, and that
/// stays as long as any part of it does.
pub(super) fn kept(mut message: Message) -> Arc<Message> {
    message.message.payload = Bytes::copy_from_slice(&message.message.payload);
    Arc::new(message)
}

impl Item {
    pub(super) fn message(&self) -> &Arc<Message> {
        match self {
            Self::Event(TakenEvent { message, .. }) | Self::Malformed { message, .. } => message,
        }
    }

    /// The stripe of the member that it changes; the first if it changes none.
    pub(super) fn stripe(&self) -> Stripe {
        match self {
            Self::Event(event) => match &event.delivered.event.effect {
                Effect::Member { user, .. } => Stripe::of(user),
                Effect::Guild(_) => Stripe::default(),
            },
            Self::Malformed { .. } => Stripe::default(),
        }
    }
}

/// What a message counts in the queue. One that is larger than any event is not parsed, and must not wait for room that there
/// never is.
pub(super) fn bytes_of(message: &Message) -> usize {
    message.length.min(*MAX_BYTES.end())
}
