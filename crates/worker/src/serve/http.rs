//! `/livez`, `/readyz` and `/metrics`, for the platform that runs the container.
//!
//! No client of the port is trusted: a connection serves one request, is open for a bounded time, and their number is bounded. A connection beyond that number takes the place of the oldest of the address that has the most, so
//! that a probe is answered however many connections others hold open.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_process::Collector;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, oneshot};
use tokio::task::{AbortHandle, Id, JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use super::readiness::{Part, Readiness};
use crate::descriptors::{self, Spare};
use crate::failure::Failure;

/// How long a client may take to send a request's head.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a connection may be open: for the head, the answer, and the client's reading of it.
const WHOLE_TIME: Duration = Duration::from_secs(10);
/// The most bytes of a request's head, which is hyper's least, and the most headers in it.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a stop waits for answers that are under way.
const GRACE: Duration = Duration::from_millis(500);
/// The pause after the system refused to accept a connection.
const PAUSE: Duration = Duration::from_millis(100);
/// The time without a refusal after which the log says that the refusals have ended: under a shortage they come and go.
const QUIET: Duration = Duration::from_secs(5);

/// The answers on the port.
struct Shown {
    readiness: Readiness,
    metrics: PrometheusHandle,
    /// The process's memory, descriptors and time, read when they are asked for.
    process: Collector,
    rendered: Arc<Mutex<Option<Rendered>>>,
}

/// The metrics as they were shown last.
struct Rendered {
    text: Bytes,
    at: Instant,
    took: Duration,
}

impl Shown {
    /// The metrics as of now, or as of a moment ago for a client that asks without pause. One rendering is made at a time, and
    /// all of them take a tenth of a processor at most.
    async fn metrics(&self) -> Bytes {
        let mut rendered = Arc::clone(&self.rendered).lock_owned().await;
        if let Some(Rendered { text, at, took }) = &*rendered
            && at.elapsed() < took.saturating_mul(9)
        {
            return text.clone();
        }
        let (metrics, process) = (self.metrics.clone(), self.process.clone());
        let rendering = spawn_blocking(move || {
            let at = Instant::now();
            process.collect();
            let text = Bytes::from(metrics.render());
            let now = Instant::now();
            *rendered =
                Some(Rendered { text: text.clone(), at: now, took: now.saturating_duration_since(at) });
            text
        });
        rendering.await.unwrap_or_default()
    }
}

/// The server, until it is stopped.
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Http {
    /// Listens on `address`, with at most `most` connections at once.
    pub(crate) async fn start(
        address: SocketAddr,
        most: usize,
        readiness: Readiness,
        metrics: PrometheusHandle,
    ) -> Result<Self, Failure> {
        let listener =
            TcpListener::bind(address).await.map_err(|cause| Failure::Listen { address, cause })?;
        let address = listener.local_addr()?;
        let shown = Shown { readiness, metrics, process: Collector::default(), rendered: Arc::default() };
        let (stop, stopped) = oneshot::channel();
        let server = Server {
            listener,
            shown: Arc::new(shown),
            most: most.max(1),
            connections: JoinSet::new(),
            open: Vec::new(),
            spare: Spare::default(),
            refused: None,
        };
        Ok(Self { address, stop, task: tokio::spawn(server.run(stopped)) })
    }

    /// Accepts no more, gives answers that are under way a moment, and closes what is left, all within `deadline`.
    pub(crate) async fn stop(mut self, deadline: Duration) {
        // Fails only when the server has ended by itself.
        let _ = self.stop.send(());
        if timeout(deadline.min(GRACE), &mut self.task).await.is_err() {
            // With it go its connections.
            self.task.abort();
        }
    }
}

/// A connection that is served.
struct Open {
    peer: IpAddr,
    id: Id,
    abort: AbortHandle,
}

struct Server {
    listener: TcpListener,
    shown: Arc<Shown>,
    most: usize,
    connections: JoinSet<()>,
    /// The connections that were not closed to make room for another, oldest first.
    open: Vec<Open>,
    spare: Spare,
    /// When the system last refused a connection. Empty once the log says that the refusals have ended.
    refused: Option<Instant>,
}

impl Server {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                // An error means that the sender is gone, which is a stop as well.
                _ = &mut stopped => break,
                Some(ended) = self.connections.join_next_with_id() => {
                    self.forget(ended.map_or_else(|error| error.id(), |(id, ())| id));
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.serve(stream, peer.ip()).await,
                    Err(error) => self.not_accepted(&error).await,
                },
            }
        }
        drop(self.listener);
        while self.connections.join_next().await.is_some() {}
    }

    async fn serve(&mut self, stream: TcpStream, peer: IpAddr) {
        if self.refused.take_if(|last| last.elapsed() >= QUIET).is_some() {
            tracing::info!("HTTP connections are accepted again");
        }
        if self.open.len() >= self.most {
            self.evict().await;
        }
        let shown = Arc::clone(&self.shown);
        let abort = self.connections.spawn(async move {
            // Whatever ends it otherwise is the client's doing, or its time is over.
            let _ = timeout(WHOLE_TIME, one_request(stream, shown)).await;
        });
        self.open.push(Open { peer, id: abort.id(), abort });
    }

    /// Closes the oldest connection of the address that has the most.
    async fn evict(&mut self) {
        let mut held: HashMap<IpAddr, usize> = HashMap::new();
        for open in &self.open {
            let number = held.entry(open.peer).or_default();
            *number = number.saturating_add(1);
        }
        let most = held.values().max().copied();
        let Some(oldest) = self.open.iter().position(|open| held.get(&open.peer).copied() == most) else {
            return;
        };
        self.open.remove(oldest).abort.abort();
        // Its descriptor is free before another is taken. An ended task is never far off: this one.
        if let Some(ended) = self.connections.join_next_with_id().await {
            self.forget(ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
    }

    fn forget(&mut self, id: Id) {
        self.open.retain(|open| open.id != id);
        self.spare.restore();
    }

    async fn not_accepted(&mut self, error: &std::io::Error) {
        // A client that went away before it was accepted is no fault of the system's.
        if matches!(error.kind(), std::io::ErrorKind::ConnectionAborted | std::io::ErrorKind::ConnectionReset)
        {
            return;
        }
        if self.refused.replace(Instant::now()).is_none() {
            tracing::warn!(error = %error, "HTTP connections are not accepted for now");
        }
        if !descriptors::is_shortage(error) {
            return sleep(PAUSE).await;
        }
        self.shown.readiness.set(Part::Descriptors, false);
        // A descriptor for this connection: that of one which ends soon, or of the oldest, or the one kept for it.
        match timeout(PAUSE, self.connections.join_next_with_id()).await {
            Ok(Some(ended)) => self.forget(ended.map_or_else(|error| error.id(), |(id, ())| id)),
            Ok(None) if self.spare.spend() => {}
            Ok(None) => sleep(PAUSE).await,
            Err(_) => self.evict().await,
        }
    }
}

/// Serves one request and closes the connection. A body that is sent with it is not read.
async fn one_request(stream: TcpStream, shown: Arc<Shown>) {
    let answering = service_fn(move |request| {
        let shown = Arc::clone(&shown);
        async move { Ok::<_, Infallible>(answer(&shown, &request).await) }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), answering);
    // An error is the client's doing.
    let _ = served.await;
}

async fn answer(shown: &Shown, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n");
        refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        // The process runs and its runtime schedules: anything else would have it restarted for a fault that is elsewhere.
        "/livez" => response(StatusCode::OK, "text/plain; charset=utf-8", "ok\n"),
        "/readyz" => {
            let parts = shown.readiness.parts();
            let ready = parts.values().all(|ready| *ready);
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            response(status, "application/json", serde_json::to_vec(&parts).unwrap_or_default())
        }
        "/metrics" => response(StatusCode::OK, "text/plain; version=0.0.4", shown.metrics().await),
        _ => response(StatusCode::NOT_FOUND, "text/plain", "/livez, /readyz or /metrics\n"),
    }
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
