//! Asking the service from Rust: each endpoint is a type of [`api`](crate::api), which knows its answer. The crate's
//! documentation begins with an example.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{HeaderMap, Message};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use muster_domain::{CommunityId, Event, GuildId, TraceParent};
use tokio::time::Instant;
use uuid::Uuid;

use crate::api::community::{Community, Find};
use crate::api::{Caller, Description, Endpoint, ErrorBody, ErrorCode, MAX_REQUEST};
use crate::changes::follower::{Changes, FollowError};
use crate::changes::subjects;
use crate::connection::{Connection, ConnectionError, NatsConfig};
use crate::events::envelope;
use crate::header::set_traceparent;
use crate::request::CALLER;
use crate::service::ERROR_CODE;

/// The most times that a repeatable request is sent.
const MAX_ATTEMPTS: u32 = 3;
/// The pause before a request that nobody took is sent again.
const NOBODY_PAUSE: Duration = Duration::from_millis(100);

/// Asks the service. Clones share the connection.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
    caller: Option<Caller>,
    traceparent: Option<TraceParent>,
    timeout: Duration,
}

impl Client {
    /// Connects and asks over that connection.
    ///
    /// # Errors
    /// [`ClientError::Connection`] when there is none.
    pub async fn connect(config: NatsConfig) -> Result<Self, ClientError> {
        Ok(Self::new(Connection::open(config).await?))
    }

    /// Asks over a connection that stands.
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        let timeout = connection.request_timeout();
        Self { connection, caller: None, traceparent: None, timeout }
    }

    /// The same client, asking on this person's behalf.
    #[must_use]
    pub fn on_behalf_of(mut self, caller: Caller) -> Self {
        self.caller = Some(caller);
        self
    }

    /// The same client, whose requests belong to this trace (W3C Trace Context).
    #[must_use]
    pub fn in_trace(mut self, traceparent: TraceParent) -> Self {
        self.traceparent = Some(traceparent);
        self
    }

    /// The same client, waiting this long for each answer, repetitions included: a day at most.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(Duration::from_hours(24));
        self
    }

    /// The connection.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Follows the changes of every community, one after the other. The broker remembers the follower's position under its name,
    /// which has letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// [`FollowError::Consumer`] when this user may not, [`FollowError::Taken`] when the name follows something else.
    pub async fn changes(&self, durable: &str) -> Result<Changes, FollowError> {
        Changes::follow(&self.connection, durable, None).await
    }

    /// Asks within one community.
    #[must_use]
    pub fn community(&self, community: CommunityId) -> CommunityClient {
        CommunityClient { client: self.clone(), community }
    }

    /// The community of a chat server.
    ///
    /// # Errors
    /// [`ClientError`]; of code [`ErrorCode::NotFound`] when there is none.
    pub async fn find_community(&self, guild_id: GuildId) -> Result<Community, ClientError> {
        self.ask(Find::DESCRIPTION.pattern(), &Find { guild_id }).await
    }

    /// Sends one request to any subject, as an operator does by hand, and waits for its answer.
    ///
    /// # Errors
    /// [`ClientError`] when there is no answer. An answer that is an error is an [`Answer`] all the same.
    pub async fn ask_by_hand(&self, subject: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let request = async_nats::Request::new()
            .payload(body.into())
            .headers(self.headers())
            .timeout(Some(self.timeout));
        let sent = self.connection.client().send_request(subject.to_owned(), request).await;
        let message = sent.map_err(|error| match error.kind() {
            RequestErrorKind::TimedOut => ClientError::Timeout(self.timeout),
            RequestErrorKind::NoResponders => ClientError::NoResponders,
            _ => ClientError::Send(error.into()),
        })?;
        let is_error = message.headers.as_ref().is_some_and(|headers| headers.get(ERROR_CODE).is_some());
        Ok(Answer { body: message.payload.to_vec(), is_error })
    }

    async fn ask<E: Endpoint>(&self, subject: String, request: &E) -> Result<E::Answer, ClientError> {
        let payload = bytes::Bytes::from(serde_json::to_vec(request).map_err(ClientError::Request)?);
        if payload.len() > MAX_REQUEST {
            return Err(ClientError::TooLarge);
        }
        let message = self.send(E::DESCRIPTION, subject, payload).await?;
        let failed = message.headers.as_ref().is_some_and(|headers| headers.get(ERROR_CODE).is_some());
        if failed {
            let body: ErrorBody = serde_json::from_slice(&message.payload).map_err(ClientError::Answer)?;
            let error = body.error;
            return Err(ClientError::Service {
                code: error.code,
                message: error.message,
                field: error.field,
                retry_after: error.retry_after_ms.map(Duration::from_millis),
                request_id: error.request_id,
            });
        }
        serde_json::from_slice(&message.payload).map_err(ClientError::Answer)
    }

    /// Sends a request until it is answered. A request that nobody took had no effect and is sent again. One whose answer may be lost is
    /// sent again after half of the time, only where it is idempotent; the first answer of both counts.
    async fn send(
        &self,
        endpoint: &Description,
        subject: String,
        payload: bytes::Bytes,
    ) -> Result<Message, ClientError> {
        let begun = Instant::now();
        let deadline = begun + self.timeout;
        let attempt = |pause| self.attempt(&subject, &payload, deadline, pause);
        let mut sent = FuturesUnordered::from_iter([attempt(Duration::ZERO)]);
        let (mut attempts, mut repeats, mut refused) = (1, endpoint.is_repeatable, None);
        loop {
            let error = tokio::select! {
                biased;
                Some(answer) = sent.next() => match answer {
                    // The other may be answered all the same.
                    Ok(message) if is_refusal(&message) && !sent.is_empty() => {
                        refused = Some(message);
                        continue;
                    }
                    Ok(message) => return Ok(message),
                    Err(error) => error,
                },
                () = tokio::time::sleep_until(begun + self.timeout / 2), if repeats => {
                    repeats = false;
                    if attempts < MAX_ATTEMPTS {
                        attempts += 1;
                        sent.push(attempt(Duration::ZERO));
                    }
                    continue;
                }
            };
            let pause = NOBODY_PAUSE.saturating_mul(attempts);
            let again = matches!(error, ClientError::NoResponders)
                && attempts < MAX_ATTEMPTS
                && Instant::now() + pause < deadline;
            if again {
                attempts += 1;
                sent.push(attempt(pause));
            } else if sent.is_empty() {
                // A link that was given up says more than that no answer came.
                let failed = || self.connection.failure().map_or(error, ClientError::Connection);
                return refused.ok_or_else(failed);
            }
        }
    }

    async fn attempt(
        &self,
        subject: &str,
        payload: &bytes::Bytes,
        deadline: Instant,
        pause: Duration,
    ) -> Result<Message, ClientError> {
        tokio::time::sleep(pause).await;
        let request = async_nats::Request::new()
            .payload(payload.clone())
            .headers(self.headers())
            .timeout(Some(deadline.saturating_duration_since(Instant::now())));
        // The library's own time begins when the request has found room in its queue.
        let sent = self.connection.client().send_request(subject.to_owned(), request);
        match tokio::time::timeout_at(deadline, sent).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(error)) => Err(match error.kind() {
                RequestErrorKind::TimedOut => ClientError::Timeout(self.timeout),
                RequestErrorKind::NoResponders => ClientError::NoResponders,
                _ => ClientError::Send(error.into()),
            }),
            Err(_) => Err(ClientError::Timeout(self.timeout)),
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(caller) = &self.caller {
            headers.insert(CALLER, caller.as_str());
        }
        set_traceparent(&mut headers, self.traceparent.as_ref());
        headers
    }
}

/// Whether the service answers that it cannot answer now.
fn is_refusal(message: &Message) -> bool {
    let code = message.headers.as_ref().and_then(|headers| headers.get(ERROR_CODE));
    let codes = [ErrorCode::Unavailable, ErrorCode::RateLimited].map(|code| code.number().to_string());
    code.is_some_and(|code| codes.iter().any(|refused| refused == code.as_str()))
}

/// Asks within one community.
#[derive(Debug, Clone)]
pub struct CommunityClient {
    client: Client,
    community: CommunityId,
}

impl CommunityClient {
    /// The community.
    #[must_use]
    pub fn id(&self) -> CommunityId {
        self.community
    }

    /// Follows this community's changes, as [`Client::changes`] follows those of all.
    ///
    /// # Errors
    /// [`FollowError::Consumer`] when this user may not, [`FollowError::Taken`] when the name follows something else.
    pub async fn changes(&self, durable: &str) -> Result<Changes, FollowError> {
        Changes::follow(&self.client.connection, durable, Some(subjects(self.community))).await
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`ClientError`] says whether the service refused or was not reached.
    pub async fn ask<E: Endpoint>(&self, request: &E) -> Result<E::Answer, ClientError> {
        self.client.ask(E::DESCRIPTION.subject(self.community), request).await
    }
}

/// An answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its body.
    pub body: Vec<u8>,
    /// Whether its headers say that it is an error.
    pub is_error: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The service refused.
    #[error("the service answers {code}: {message}")]
    Service {
        /// The kind of error.
        code: ErrorCode,
        /// What went wrong and what to do.
        message: String,
        /// The field that is wrong.
        field: Option<String>,
        /// The time after which the request may be repeated.
        retry_after: Option<Duration>,
        /// The id under which the service's log tells more.
        request_id: Option<Uuid>,
    },
    /// No answer came.
    #[error("the service did not answer within {0:?}: check that the worker is ready, or raise the timeout")]
    Timeout(Duration),
    /// Nobody takes the request.
    #[error("no responders: check that the service runs and that this user may publish to the subject")]
    NoResponders,
    /// The request is over 64 KiB.
    #[error("the request has over {MAX_REQUEST} bytes: ask for less at once")]
    TooLarge,
    /// The request could not be written as JSON.
    #[error("the request cannot be written as JSON: report this as a defect")]
    Request(#[source] serde_json::Error),
    /// The answer is not of the documented form.
    #[error(
        "the answer is not of the documented form: check that service and client are of one major version"
    )]
    Answer(#[source] serde_json::Error),
    /// The request was not sent.
    #[error("the request was not sent: check the connection to NATS, then send it again")]
    Send(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ClientError {
    /// The kind of error that the service answered, if it answered one.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Service { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Publishes events as the chat gateway does, for demonstrations and tests.
#[derive(Debug, Clone)]
pub struct EventPublisher {
    context: async_nats::jetstream::Context,
    // It would outlive the one who looks after the link.
    _connection: Connection,
}

impl EventPublisher {
    /// The most events that wait for the broker's acknowledgement at once.
    pub const MAX_IN_FLIGHT: usize = 512;

    /// Publishes over this connection.
    #[must_use]
    pub fn new(connection: &Connection) -> Self {
        let context = async_nats::jetstream::new(connection.client().clone());
        Self { context, _connection: connection.clone() }
    }

    /// Publishes one event, and waits until the stream has it. Returns its sequence there.
    ///
    /// # Errors
    /// [`PublishError`] when the stream did not take it.
    pub async fn publish(&self, event: &Event) -> Result<u64, PublishError> {
        let (subject, payload) = envelope::encode(event);
        self.send(subject, event.traceparent.as_ref(), payload).await
    }

    /// Publishes any bytes on any subject of the stream.
    ///
    /// # Errors
    /// [`PublishError`] when the stream did not take them.
    pub async fn publish_raw(&self, subject: String, payload: Vec<u8>) -> Result<u64, PublishError> {
        self.send(subject, None, payload).await
    }

    async fn send(
        &self,
        subject: String,
        trace: Option<&TraceParent>,
        payload: Vec<u8>,
    ) -> Result<u64, PublishError> {
        let failed = |cause: async_nats::jetstream::context::PublishError| PublishError(cause.into());
        let mut headers = HeaderMap::new();
        set_traceparent(&mut headers, trace);
        let sent = match headers.is_empty() {
            true => self.context.publish(subject, payload.into()).await,
            false => self.context.publish_with_headers(subject, headers, payload.into()).await,
        };
        let sent = sent.map_err(failed)?;
        Ok(sent.await.map_err(failed)?.sequence)
    }

    /// Publishes many events in order, up to [`Self::MAX_IN_FLIGHT`] of them at once. After each, `progress` gets the number of
    /// events that the stream has taken.
    ///
    /// # Errors
    /// [`PublishError`] at the first that the stream did not take.
    pub async fn publish_all(
        &self,
        events: impl IntoIterator<Item = Event> + Send,
        mut progress: impl FnMut(u64) + Send,
    ) -> Result<u64, PublishError> {
        let mut published: u64 = 0;
        let mut sending = stream::iter(events.into_iter().map(|event| {
            let publisher = self.clone();
            async move { publisher.publish(&event).await }
        }))
        .buffered(Self::MAX_IN_FLIGHT);
        while let Some(taken) = sending.next().await {
            taken?;
            published = published.saturating_add(1);
            progress(published);
        }
        Ok(published)
    }
}

/// An event was not taken.
#[derive(Debug, thiserror::Error)]
#[error("the stream did not take the event: check that it exists and has room")]
pub struct PublishError(#[source] Box<dyn std::error::Error + Send + Sync>);
