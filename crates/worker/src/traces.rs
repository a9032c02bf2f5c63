//! Traces: spans of requests, events and queries, handed to a collector by OTLP over HTTP where one is configured.
//!
//! A request continues the trace of its `traceparent`. A batch of events continues their trace when all are of one; else it begins a
//! trace, which is linked with up to 32 of theirs. Spans hold ids of requests and communities, and no person's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hyper_rustls::HttpsConnectorBuilder;
use muster_domain::TraceParent;
use muster_messaging::api::Question;
use muster_messaging::events::consumer::Delivered;
use muster_messaging::request::{Request, TRACEPARENT};
use muster_messaging::tls::material::{Material, MinimumVersion};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::{Level, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::registry::LookupSpan;

use crate::chain::chain;
use crate::settings::{SettingsError, Traces};

/// The most traces that a batch of events is linked with.
const MAX_LINKS: usize = 32;
/// How long the collector may take to take a batch of spans.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The exporter of spans. [`Exporting::stop`] hands over those that still wait.
pub(crate) struct Exporting {
    provider: SdkTracerProvider,
    material: Arc<Material>,
}

/// Reads the authorities to trust for the collector.
pub(crate) fn material(settings: &Traces) -> Result<Material, SettingsError> {
    Material::load(&settings.tls, MinimumVersion::Tls13)
        .map_err(|error| SettingsError::new(format!("traces: {}", chain(&error))))
}

impl Exporting {
    /// Makes the exporter. It connects when it has spans to hand over, and drops them when nobody takes them.
    pub(crate) fn start(settings: &Traces) -> Result<Self, SettingsError> {
        let wrong = |error: &dyn std::fmt::Display| SettingsError::new(format!("traces: {error}"));
        let material = Arc::new(material(settings)?);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(rustls::ClientConfig::clone(&material.client_config()))
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client {
            inner: HyperClient::new(connector, TIMEOUT, None),
            runtime: Handle::current(),
            refused: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(settings.endpoint.to_string())
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| wrong(&error))?;
        let resource = Resource::builder()
            .with_service_name("muster-worker")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let kept = f64::from(settings.sample_percent) / 100.0;
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(kept))))
            .with_resource(resource)
            .build();
        Ok(Self { provider, material })
    }

    /// The layer that exports Muster's own spans, and no log lines.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let ours = FilterFn::new(|metadata| metadata.is_span() && metadata.target().starts_with("muster"));
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("muster"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(ours.with_max_level_hint(Level::DEBUG))
    }

    /// The authorities that are trusted for the collector. A reload takes effect with the next connection.
    pub(crate) fn material(&self) -> Arc<Material> {
        Arc::clone(&self.material)
    }

    /// Hands over the spans that wait, within `deadline`.
    pub(crate) async fn stop(self, deadline: Duration) {
        let stopped =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(deadline)).await;
        if let Ok(Err(error)) = stopped {
            tracing::debug!(error = %error, "the last spans were not taken");
        }
    }
}

/// A request's span; part of the trace that its `traceparent` names.
pub(crate) fn request(request: &Request) -> Span {
    let span = tracing::debug_span!(
        "request",
        otel.name = request.endpoint.name,
        otel.kind = "server",
        request.id = %request.id,
        request.endpoint = request.endpoint.name,
        community.id = tracing::field::Empty,
        "error.type" = tracing::field::Empty,
    );
    if let Question::Within(community, _) = &request.question {
        span.record("community.id", tracing::field::display(community));
    }
    if let Some(traceparent) = &request.traceparent {
        // Nobody takes spans where this fails.
        let _ = span.set_parent(context(traceparent.as_str()));
    }
    span
}

/// The span of a batch of events. One whose events are all of one trace goes on with it; another begins a trace, and is
/// linked with those of its events, up to [`MAX_LINKS`].
pub(crate) fn batch(delivered: &[Delivered]) -> Span {
    let span = tracing::debug_span!(
        "events",
        otel.kind = "consumer",
        messaging.batch.message_count = delivered.len()
    );
    let traceparents =
        delivered.iter().map(|delivered| delivered.event.traceparent.as_ref().map(TraceParent::as_str));
    match BatchTraces::of(traceparents) {
        BatchTraces::One(traceparent) => {
            // Nobody takes spans where this fails.
            let _ = span.set_parent(context(traceparent));
        }
        BatchTraces::Several(traceparents) => {
            for traceparent in traceparents {
                span.add_link(context(traceparent).span().span_context().clone());
            }
        }
    }
    span
}

/// The traces of a batch's events.
#[derive(Debug, PartialEq, Eq)]
enum BatchTraces<'a> {
    /// All events are of this one.
    One(&'a str),
    /// The first [`MAX_LINKS`] of several, or of those that some events are of.
    Several(Vec<&'a str>),
}

impl<'a> BatchTraces<'a> {
    fn of(traceparents: impl Iterator<Item = Option<&'a str>>) -> Self {
        let traceparents: BTreeSet<Option<&str>> = traceparents.collect();
        match (traceparents.len(), traceparents.first()) {
            (1, Some(Some(traceparent))) => Self::One(traceparent),
            _ => Self::Several(traceparents.into_iter().flatten().take(MAX_LINKS).collect()),
        }
    }
}

/// The trace and span that a `traceparent` names; of one that is malformed, none.
fn context(traceparent: &str) -> Context {
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    TraceContextPropagator::new().extract(&carrier)
}

/// Sends on the worker's runtime, since the batches come from a thread of their own, and says when the collector begins
/// to refuse them and when it takes them again.
#[derive(Debug)]
struct Client<C> {
    inner: C,
    runtime: Handle,
    refused: AtomicBool,
}

#[async_trait]
impl<C: HttpClient + Clone + 'static> HttpClient for Client<C> {
    async fn send_bytes(
        &self,
        request: opentelemetry_http::Request<Bytes>,
    ) -> Result<Response<Bytes>, HttpError> {
        let client = self.inner.clone();
        let result = self.runtime.spawn(async move { client.send_bytes(request).await }).await?;
        let refusal = match &result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(response.status().to_string()),
            Err(error) => Some(chain(error.as_ref())),
        };
        match refusal {
            Some(error) if !self.refused.swap(true, Ordering::Relaxed) => {
                tracing::warn!(error, "the collector rejects spans: they are dropped until it accepts them");
            }
            None if self.refused.swap(false, Ordering::Relaxed) => {
                tracing::info!("the collector takes traces again");
            }
            _ => {}
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_continues_one_trace_or_is_linked_with_some_of_several() {
        let one = [Some("a"), Some("a")];
        assert_eq!(BatchTraces::of(one.into_iter()), BatchTraces::One("a"));
        assert_eq!(BatchTraces::of([None, None].into_iter()), BatchTraces::Several(vec![]));
        assert_eq!(BatchTraces::of([None, Some("a")].into_iter()), BatchTraces::Several(vec!["a"]));
        let many: Vec<String> = (0..40).map(|number| format!("{number:02}")).collect();
        let BatchTraces::Several(linked) = BatchTraces::of(many.iter().map(|trace| Some(trace.as_str())))
        else {
            panic!("they are several")
        };
        assert_eq!(linked.len(), MAX_LINKS);
    }
}
