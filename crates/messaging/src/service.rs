//! The NATS micro-service `muster`: requests in, answers out, within bounds.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::PublishErrorKind;
use async_nats::service::ServiceExt;
use async_nats::service::endpoint::Endpoint as Incoming;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{SelectAll, StreamExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::api::{Description, ENDPOINTS, ErrorCode, MAX_REQUEST, Reply, ServiceError};
use crate::connection::Connection;
use crate::header;
use crate::log_budget::{Line, LogBudget};
use crate::request::Request;
use crate::share::{Asker, Shares, Slot};

/// Lines a minute about requests that failed by a defect, and about answers that were not sent.
static FAILED_LINES: LogBudget = LogBudget::new(10);
static UNSENT_LINES: LogBudget = LogBudget::new(5);

/// The service's name in the NATS service protocol.
pub const NAME: &str = "muster";
/// The header with an error's message.
pub const ERROR: &str = "Nats-Service-Error";
/// The header with an error's number.
pub const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// The least that a server's largest message should be, in bytes: every answer of one row, and every error, fits in.
pub const LEAST_PAYLOAD: usize = 16 * 1024;

/// The outcome of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Where it was asked.
    pub endpoint: &'static Description,
    /// `None` for an answer, else the kind of error.
    pub error: Option<ErrorCode>,
    /// From its arrival to its answer.
    pub latency: Duration,
    /// Whether the limit that was asked for had to be changed.
    pub clamped: bool,
    /// Whether the page was truncated to fit into one message.
    pub truncated: bool,
}

/// Gets every [`Observation`]; it must not block.
pub type Observe = Arc<dyn Fn(&Observation) + Send + Sync>;

/// The service's bounds.
#[derive(Clone)]
pub struct ServiceConfig {
    /// The most requests under way at once. One community may have seven eighths of what the others leave. A further request
    /// is answered `unavailable` at once.
    pub max_in_flight: usize,
    /// How many requests of one community are worked on at once; further ones are queued.
    pub at_once: usize,
    /// How many requests are worked on at once in all.
    pub at_once_in_all: usize,
    /// How long a handler may take before the client is answered `unavailable`: a day at most. The handler is not stopped by it.
    pub deadline: Duration,
    /// Told of every request.
    pub observe: Observe,
}

impl Default for ServiceConfig {
    /// 256 requests at once, all of them worked on, 128 of one community, 5 s each, told to nobody.
    fn default() -> Self {
        Self {
            max_in_flight: 256,
            at_once: 128,
            at_once_in_all: 256,
            deadline: Duration::from_secs(5),
            observe: Arc::new(|_| {}),
        }
    }
}

impl fmt::Debug for ServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceConfig")
            .field("max_in_flight", &self.max_in_flight)
            .field("at_once", &self.at_once)
            .field("at_once_in_all", &self.at_once_in_all)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// How long the endpoints may take to be unsubscribed, before they are dropped.
const UNSUBSCRIBED: Duration = Duration::from_secs(2);

/// Answers every endpoint of the service by `handler` until the service is stopped.
///
/// # Errors
/// [`ServeError`] when the endpoints cannot be subscribed to.
pub async fn serve<H, F>(
    connection: &Connection,
    config: ServiceConfig,
    handler: H,
) -> Result<Service, ServeError>
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Reply, ServiceError>> + Send + 'static,
{
    let errors = Errors::default();
    let told = errors.clone();
    let micro = connection
        .client()
        .service_builder()
        .description("Members, ranks, tiers and badges of chat communities")
        // The library counts as errors only answers that it writes itself, which have no body; ours are counted here.
        .stats_handler(move |name, _| serde_json::json!({ "errors": told.of(&name) }))
        .start(NAME, env!("CARGO_PKG_VERSION"))
        .await
        .map_err(ServeError)?;
    let mut incoming = SelectAll::new();
    for &endpoint in ENDPOINTS {
        let requests: Incoming = micro
            .endpoint_builder()
            .name(endpoint.service_name())
            .add(endpoint.pattern())
            .await
            .map_err(ServeError)?;
        incoming.push(requests.map(move |request| (endpoint, request)).boxed());
    }
    let tasks = TaskTracker::new();
    let shared = Arc::new(Shared { connection: connection.clone(), config, errors, handler });
    let reader = tokio::spawn(read(incoming, shared, tasks.clone()));
    Ok(Service { connection: connection.clone(), micro, reader, tasks })
}

/// The running service.
#[derive(Debug)]
pub struct Service {
    connection: Connection,
    micro: async_nats::service::Service,
    reader: JoinHandle<()>,
    tasks: TaskTracker,
}

impl Service {
    /// How many requests are being worked on, including those that were answered `unavailable` at their deadline and go on.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.tasks.len()
    }

    /// Takes no more requests, and waits until those in hand are answered and the server has stopped sending more. A request
    /// that the server sends at that moment is lost; [`Client`](crate::client::Client) then asks again.
    ///
    /// # Errors
    /// [`StopError`] when they take longer than `deadline`; they go on.
    pub async fn stop(self, deadline: Duration) -> Result<(), StopError> {
        let (tasks, mut reader) = (self.tasks, self.reader);
        let finished = async {
            // Nothing is sent by a link that was given up, nor does anything come.
            if self.connection.failure().is_some() {
                reader.abort();
            } else {
                // It cannot fail in a way that leaves something to stop.
                let _ = self.micro.stop().await;
                // The library unsubscribes once, and not at all while its queue of commands is full. Dropping what is read does it, too.
                if tokio::time::timeout(UNSUBSCRIBED, &mut reader).await.is_err() {
                    reader.abort();
                }
                // The server answers in order, and to this at once, for nobody listens there.
                let _ =
                    self.connection.client().request(self.connection.client().new_inbox(), "".into()).await;
            }
            tasks.close();
            tasks.wait().await;
        };
        let timely = tokio::time::timeout(deadline, finished).await;
        timely.map_err(|_| StopError { in_flight: tasks.len() })
    }
}

/// How many errors each endpoint has answered.
#[derive(Debug, Clone, Default)]
struct Errors(Arc<RwLock<BTreeMap<String, AtomicU64>>>);

impl Errors {
    fn count(&self, endpoint: &Description) {
        let name = endpoint.service_name();
        let counted = self
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&name)
            .map(|count| count.fetch_add(1, Ordering::Relaxed));
        if counted.is_none() {
            let mut counts = self.0.write().unwrap_or_else(PoisonError::into_inner);
            counts.entry(name).or_default().fetch_add(1, Ordering::Relaxed);
        }
    }

    fn of(&self, name: &str) -> u64 {
        let counts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        counts.get(name).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

struct Shared<H> {
    connection: Connection,
    config: ServiceConfig,
    errors: Errors,
    handler: H,
}

type Requests =
    SelectAll<futures_util::stream::BoxStream<'static, (&'static Description, async_nats::service::Request)>>;

/// Reads requests until the service is stopped. It never waits for a handler, so that requests do not queue up before it.
async fn read<H, F>(mut incoming: Requests, shared: Arc<Shared<H>>, tasks: TaskTracker)
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Reply, ServiceError>> + Send + 'static,
{
    let ServiceConfig { max_in_flight, at_once, at_once_in_all, .. } = shared.config;
    let shares = Shares::new(max_in_flight, at_once, at_once_in_all);
    while let Some((endpoint, mut message)) = incoming.next().await {
        // Without a place to answer to, there is nothing to do.
        if message.message.reply.is_none() {
            continue;
        }
        let started = Instant::now();
        let refuse = async |error| {
            shared.answer(endpoint, Uuid::now_v7(), &message, started, Outcome::refused(error)).await;
        };
        // What waits for its turn is held in memory, and the broker lets a request be as large as an event.
        if message.message.payload.len() > MAX_REQUEST {
            refuse(ServiceError::payload_too_large()).await;
            continue;
        }
        match shares.take(Asker::of(endpoint, &message.message.subject)) {
            Some(slot) => {
                let shared = Arc::clone(&shared);
                // What was read is part of a larger buffer, which stays as long as any part of it does.
                message.message.payload = Bytes::copy_from_slice(&message.message.payload);
                tasks.spawn(async move { shared.work(endpoint, message, started, slot).await });
            }
            None => {
                let busy = "too many requests are in flight for the community or the service: retry later";
                refuse(ServiceError::unavailable(busy)).await;
            }
        }
    }
}

fn late() -> ServiceError {
    ServiceError::unavailable("the answer took too long: ask again later")
}

struct Outcome {
    answer: Result<Vec<u8>, ServiceError>,
    clamped: bool,
    truncated: bool,
}

impl Outcome {
    /// Of a request that was not handled.
    const fn refused(error: ServiceError) -> Self {
        Self { answer: Err(error), clamped: false, truncated: false }
    }
}

impl<H, F> Shared<H>
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Result<Reply, ServiceError>> + Send + 'static,
{
    /// Answers a request. The deadline does not stop the handler: a write that is under way finishes, and keeps its slot until
    /// then.
    async fn work(
        &self,
        endpoint: &'static Description,
        message: async_nats::service::Request,
        started: Instant,
        slot: Slot,
    ) {
        let id = Uuid::now_v7();
        let deadline = started + self.config.deadline.min(Duration::from_hours(24));
        let working = self.outcome(id, endpoint, &message.message, deadline, &slot);
        tokio::pin!(working);
        if let Ok(outcome) = tokio::time::timeout_at(deadline, &mut working).await {
            self.answer(endpoint, id, &message, started, outcome).await;
        } else {
            self.answer(endpoint, id, &message, started, Outcome::refused(late())).await;
            let _ = working.await;
        }
    }

    async fn outcome(
        &self,
        id: Uuid,
        endpoint: &'static Description,
        message: &async_nats::Message,
        deadline: Instant,
        slot: &Slot,
    ) -> Outcome {
        // Held until the answer is made, not until the client has read it.
        let Ok(_permit) = tokio::time::timeout_at(deadline, slot.permit()).await else {
            return Outcome::refused(late());
        };
        let headers = message.headers.as_ref();
        let read = Request::read(id, endpoint, deadline, &message.subject, headers, &message.payload);
        let mut request = match read {
            Ok(request) => request,
            Err(error) => return Outcome::refused(error),
        };
        let clamped = request.question.is_clamped();
        // An answer has no headers that would need room, too.
        let room = self.connection.max_payload();
        let mut truncated = false;
        // The rows of a page at least halve each time, so this ends after as many rounds as 1000 has bits.
        loop {
            match self.handle(request.clone()).await {
                Ok(json) if json.len() <= room => return Outcome { answer: Ok(json), clamped, truncated },
                Ok(_) if Instant::now() < deadline && request.question.halve() => {
                    (request.is_repeat, truncated) = (true, true);
                }
                Ok(json) => {
                    let error = ServiceError::answer_too_large(json.len(), room);
                    return Outcome { answer: Err(error), clamped, truncated };
                }
                Err(error) => return Outcome { answer: Err(error), clamped, truncated },
            }
        }
    }

    /// Runs the handler. A panic becomes an error.
    async fn handle(&self, request: Request) -> Result<Vec<u8>, ServiceError> {
        let handling = AssertUnwindSafe(async {
            (self.handler)(request).await?.into_json().map_err(ServiceError::internal)
        });
        handling.catch_unwind().await.unwrap_or_else(|panic| {
            let told = panic.downcast_ref::<String>().map(String::as_str);
            let told = told.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(ServiceError::internal(format!(
                "the handler panicked: {}",
                told.unwrap_or("without a message")
            )))
        })
    }

    async fn answer(
        &self,
        endpoint: &'static Description,
        id: Uuid,
        message: &async_nats::service::Request,
        started: Instant,
        outcome: Outcome,
    ) {
        let Outcome { answer, clamped, truncated } = outcome;
        let error = answer.as_ref().err().map(ServiceError::code);
        let sent = match answer {
            Ok(json) => message.respond(Ok(json.into())).await,
            Err(error) => {
                self.errors.count(endpoint);
                if let Some(cause) = error.cause() {
                    if let Some(Line { left_out }) = FAILED_LINES.line() {
                        tracing::error!(
                            request.id = %id,
                            request.endpoint = %endpoint,
                            error = cause,
                            left_out,
                            "a request failed"
                        );
                    } else {
                        tracing::debug!(request.id = %id, error = cause, "a request failed");
                    }
                }
                let mut headers = HeaderMap::new();
                headers.insert(ERROR, header::line(error.message()).as_str());
                headers.insert(ERROR_CODE, error.code().number().to_string().as_str());
                let body = serde_json::to_vec(&error.body(id)).unwrap_or_default();
                match message.respond_with_headers(Ok(body.into()), headers.clone()).await {
                    // Where there is no room for it, the headers say the same.
                    Err(sent) if sent.kind() == PublishErrorKind::MaxPayloadExceeded => {
                        message.respond_with_headers(Ok(Default::default()), headers).await
                    }
                    sent => sent,
                }
            }
        };
        if let Err(error) = sent
            && let Some(Line { left_out }) = UNSENT_LINES.line()
        {
            tracing::warn!(
                request.id = %id,
                request.endpoint = %endpoint,
                error = %error,
                left_out,
                "an answer was not sent"
            );
        }
        (self.config.observe)(&Observation {
            endpoint,
            error,
            latency: started.elapsed(),
            clamped,
            truncated,
        });
    }
}

/// The service could not be started.
#[derive(Debug, thiserror::Error)]
#[error(
    "the service's subjects cannot be subscribed to: check that the connection is up and that its user may subscribe to \
     muster.v1.>"
)]
pub struct ServeError(#[source] async_nats::Error);

/// The service was not done in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{in_flight} requests were still being worked on at the deadline: raise shutdown.deadline_ms")]
pub struct StopError {
    /// How many requests are still being worked on, including those that were answered at their own deadline.
    pub in_flight: usize,
}
