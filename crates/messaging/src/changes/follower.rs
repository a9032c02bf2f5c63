//! Follows changes from Rust.
//!
//! ```no_run
//! # async fn example(client: muster_messaging::client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use muster_domain::{ChangeData, Changed};
//! use muster_messaging::changes::follower::FollowError;
//!
//! let mut changes = client.changes("roles").await?;
//! loop {
//!     let delivered = match changes.next().await {
//!         // Of a type that a later version tells of.
//!         Err(FollowError::Unreadable(unknown)) => {
//!             unknown.skip().await?;
//!             continue;
//!         }
//!         taken => taken?,
//!     };
//!     if let Changed::Member { user, data: ChangeData::TierPromoted { to, .. }, .. } = &delivered.change.what {
//!         println!("{user} holds {to:?} now");
//!     }
//!     delivered.ack().await?;
//! }
//! # }
//! ```

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{self, Config};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use async_nats::jetstream::{self, AckKind, Context, ErrorCode};
use futures_util::StreamExt;
use muster_domain::Change;

use super::wire::{self, DecodeError};
use super::{CHANGES, CHANGES_SUBJECTS};
use crate::connection::{Connection, ConnectionError};
use crate::events::error::Cause;
use crate::header::traceparent;

/// The JetStream domain under which an account imports what it may of the account that has the stream, as `infra/nats` has it.
const IMPORTED: &str = "muster";
/// The subjects of every change, as `infra/nats` lets a consumer be made for them.
const CHANGES_OF_ALL: &str = "changes.v1.*.>";
/// How long the broker waits for an acknowledgement before it delivers a change again.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// How often the broker says that a request still waits: without, one that was lost, or may not be made any more, would be waited for.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long to wait before the broker is asked again where it does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Changes, one after the other: the next is delivered when the one before it is acknowledged.
///
/// The broker remembers under the follower's name how far it has come, so it goes on there after a restart.
pub struct Changes {
    connection: Connection,
    consumer: PullConsumer,
    messages: Option<pull::Stream>,
}

/// A change, to be acknowledged when it has had its effect. One that is not acknowledged within 30 seconds comes again, also while
/// it is still being worked on.
#[derive(Debug)]
#[must_use = "what is not acknowledged comes again"]
pub struct DeliveredChange {
    /// The change.
    pub change: Change,
    /// How often it was delivered, this time included.
    pub deliveries: u32,
    message: jetstream::Message,
}

impl Changes {
    /// Follows the changes of these subjects under the name `durable`. A new follower begins with the oldest change of the stream.
    ///
    /// The consumer is made where it is missing, which not everybody may: `infra/nats` has it made for a reader.
    pub(crate) async fn follow(
        connection: &Connection,
        durable: &str,
        subjects: Option<String>,
    ) -> Result<Self, FollowError> {
        let config = Config {
            durable_name: Some(durable.to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            // One at a time, so that none is delivered again behind its successor.
            max_ack_pending: 1,
            filter_subject: subjects.clone().unwrap_or_else(|| CHANGES_OF_ALL.to_owned()),
            ..Config::default()
        };
        if let Some(failure) = connection.failure() {
            return Err(FollowError::Link(failure));
        }
        let failed = |error: Cause| FollowError::Consumer(durable.to_owned(), error);
        let client = connection.client();
        let mut context = jetstream::with_domain(client.clone(), IMPORTED);
        let mut found = find(&context, durable).await;
        // This account imports no JetStream domain of that name: ask its own JetStream.
        if found.as_ref().is_err_and(|error| error.kind() == ConsumerErrorKind::Request) {
            context = jetstream::new(client.clone());
            found = find(&context, durable).await;
        }
        let consumer = match found {
            Ok(found) => {
                let is = &found.cached_info().config;
                // The name belongs to a follower of other subjects, which would miss changes if it were taken over.
                let follows = match is.filter_subject.as_str() {
                    "" if is.filter_subjects.is_empty() => CHANGES_SUBJECTS,
                    CHANGES_OF_ALL => CHANGES_SUBJECTS,
                    subjects => subjects,
                };
                if follows != subjects.as_deref().unwrap_or(CHANGES_SUBJECTS) {
                    return Err(FollowError::Taken(durable.to_owned(), follows.to_owned()));
                }
                if is.ack_policy == config.ack_policy && is.max_ack_pending == config.max_ack_pending {
                    found
                } else {
                    let updated = context.create_consumer_on_stream(config, CHANGES).await;
                    updated.map_err(|error| failed(error.into()))?
                }
            }
            Err(error) if is_missing(&error.kind()) => {
                let made = context.create_consumer_strict_on_stream(config, CHANGES).await;
                made.map_err(|error| failed(error.into()))?
            }
            Err(error) => return Err(failed(error.into())),
        };
        Ok(Self { connection: connection.clone(), consumer, messages: None })
    }

    /// The next change. It waits for one, and while the broker is away and the link may be restored.
    ///
    /// A change in a form that is not known here comes as [`FollowError::Unreadable`], to be acknowledged like any other.
    ///
    /// # Errors
    /// [`FollowError`]; with [`FollowError::Gone`] and [`FollowError::Link`] there is nothing more to follow here.
    pub async fn next(&mut self) -> Result<DeliveredChange, FollowError> {
        let connection = self.connection.clone();
        tokio::select! {
            biased;
            taken = self.take() => taken,
            ended = connection.ended() => Err(FollowError::Link(ended)),
        }
    }

    async fn take(&mut self) -> Result<DeliveredChange, FollowError> {
        loop {
            let messages = match &mut self.messages {
                Some(messages) => messages,
                None => match self
                    .consumer
                    .stream()
                    .max_messages_per_batch(1)
                    .heartbeat(HEARTBEAT)
                    .messages()
                    .await
                {
                    Ok(messages) => self.messages.insert(messages),
                    Err(_) => {
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
            };
            match messages.next().await {
                Some(Ok(message)) => return read(message),
                Some(Err(error)) if is_gone(&error.kind()) => return Err(FollowError::Gone(error.into())),
                // Such as a missed heartbeat. Ask again, unless the consumer was deleted meanwhile: the broker tells only requests
                // that wait at that moment.
                Some(Err(_)) | None => {
                    self.messages = None;
                    match self.consumer.get_info().await {
                        Err(error) if is_not_found(&error.kind()) => {
                            return Err(FollowError::Gone(error.into()));
                        }
                        _ => tokio::time::sleep(PAUSE).await,
                    }
                }
            }
        }
    }
}

async fn find(context: &Context, durable: &str) -> Result<PullConsumer, ConsumerError> {
    context.get_consumer_from_stream(durable, CHANGES).await
}

fn is_missing(kind: &ConsumerErrorKind) -> bool {
    matches!(kind, ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

const fn is_gone(kind: &pull::MessagesErrorKind) -> bool {
    matches!(kind, pull::MessagesErrorKind::ConsumerDeleted)
}

const fn is_not_found(kind: &ConsumerInfoErrorKind) -> bool {
    matches!(kind, ConsumerInfoErrorKind::NotFound | ConsumerInfoErrorKind::StreamNotFound)
}

fn read(message: jetstream::Message) -> Result<DeliveredChange, FollowError> {
    let deliveries = message.info().ok().and_then(|info| u32::try_from(info.delivered).ok()).unwrap_or(1);
    match wire::decode(&message.payload) {
        Ok(mut change) => {
            change.traceparent = traceparent(message.headers.as_ref());
            Ok(DeliveredChange { change, deliveries, message })
        }
        Err(cause) => Err(FollowError::Unreadable(UnreadableChange { message: Box::new(message), cause })),
    }
}

impl DeliveredChange {
    /// Acknowledges it: it has had its effect here. The acknowledgement is sent, and not answered: where it is lost with the link or the
    /// process, the change comes again.
    ///
    /// # Errors
    /// [`FollowError::NotAcknowledged`]; the change comes again.
    pub async fn ack(self) -> Result<(), FollowError> {
        self.message.ack_with(AckKind::Ack).await.map_err(FollowError::NotAcknowledged)
    }

    /// Says that it is still being worked on: it does not come again for another 30 seconds.
    ///
    /// # Errors
    /// [`FollowError::NotAcknowledged`]; the change may come again.
    pub async fn in_progress(&self) -> Result<(), FollowError> {
        self.message.ack_with(AckKind::Progress).await.map_err(FollowError::NotAcknowledged)
    }

    /// Gives it back: it comes again after this time.
    ///
    /// # Errors
    /// [`FollowError::NotAcknowledged`]; the change comes again when it would have without this.
    pub async fn retry_after(self, delay: Duration) -> Result<(), FollowError> {
        self.message.ack_with(AckKind::Nak(Some(delay))).await.map_err(FollowError::NotAcknowledged)
    }
}

/// A change that cannot be read, such as one of a type that a later version tells of.
#[derive(Debug, thiserror::Error)]
#[error("a change cannot be read: pass over it by `skip`, or it comes again")]
pub struct UnreadableChange {
    message: Box<jetstream::Message>,
    #[source]
    cause: DecodeError,
}

impl UnreadableChange {
    /// Why it cannot be read.
    #[must_use]
    pub const fn cause(&self) -> &DecodeError {
        &self.cause
    }

    /// Goes on without it.
    ///
    /// # Errors
    /// [`FollowError::NotAcknowledged`]; it comes again.
    pub async fn skip(self) -> Result<(), FollowError> {
        self.message.ack_with(AckKind::Ack).await.map_err(FollowError::NotAcknowledged)
    }
}

/// Why there is no change to take.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The consumer cannot be made.
    #[error(
        "changes cannot be followed as {0:?}: check that the stream and this consumer exist, or that this user may make it"
    )]
    Consumer(String, #[source] Cause),
    /// Another follower has the name, for other subjects.
    #[error("the consumer {0:?} follows {1:?}: use another name, or delete it where it is your own")]
    Taken(String, String),
    /// The consumer was deleted.
    #[error("the consumer was deleted: follow anew, and read the lists first")]
    Gone(#[source] Cause),
    /// A change of a form that is not known here.
    #[error(transparent)]
    Unreadable(UnreadableChange),
    /// The link is not restored any more: connect anew, and go on under the same name.
    #[error(transparent)]
    Link(ConnectionError),
    /// An acknowledgement was not sent.
    #[error("a change was not acknowledged, and comes again")]
    NotAcknowledged(#[source] async_nats::Error),
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").finish_non_exhaustive()
    }
}
