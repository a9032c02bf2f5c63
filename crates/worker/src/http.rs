//! `/livez`, `/readyz` and `/metrics`, for whoever runs the container.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use metrics_process::Collector;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::readiness::Readiness;

#[derive(Clone)]
struct Shown {
    readiness: Readiness,
    metrics: PrometheusHandle,
    /// The process's memory, descriptors and time, read when they are asked for.
    process: Collector,
}

/// The server, until it is stopped.
pub(crate) struct Http {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Http {
    pub(crate) async fn start(
        address: SocketAddr,
        readiness: Readiness,
        metrics: PrometheusHandle,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics_text))
            .with_state(Shown { readiness, metrics, process: Collector::default() });
        let (stop, stopped) = oneshot::channel();
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            // An error means that the sender is gone, which is a stop as well.
            let _ = stopped.await;
        });
        Ok(Self { address, stop, task: tokio::spawn(async { server.await }) })
    }

    pub(crate) async fn stop(self) {
        // Fails only when the server has ended by itself.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// The process runs and its runtime schedules: anything else would have it restarted for a fault that is elsewhere.
async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let parts = shown.readiness.parts();
    let status =
        if parts.values().all(|ready| *ready) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(parts))
}

async fn metrics_text(State(shown): State<Shown>) -> impl IntoResponse {
    shown.process.collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shown.metrics.render())
}
