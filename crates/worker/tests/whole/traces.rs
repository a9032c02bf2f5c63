//! Spans reach a collector, over TLS, in the trace that a request or event belongs to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use muster_domain::{Event, TraceParent};
use muster_messaging::api::community;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use xtask::services::Services;

use crate::setting::{Guild, Setting, community, eventually};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// An OTLP collector, as far as a test needs one.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    async fn start(services: &Services) -> Result<(Self, String)> {
        let identity = services.authority.server("collector")?;
        let chain =
            CertificateDer::pem_file_iter(&identity.certificate_file)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&identity.key_file)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("https://localhost:{}/v1/traces", listener.local_addr()?.port());
        let (collector, acceptor) = (Self::default(), TlsAcceptor::from(Arc::new(config)));
        let taking = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(taking.clone().take(acceptor.clone(), stream));
            }
        });
        Ok((collector, url))
    }

    async fn take(self, acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
        let mut stream = BufReader::new(acceptor.accept(stream).await?);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                ensure!(stream.read_line(&mut line).await? > 0, "the connection has ended");
                if line == "\r\n" {
                    break;
                }
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse()?;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await?;
            let export = ExportTraceServiceRequest::decode(body.as_slice())?;
            let scopes = export.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
        }
    }

    /// The spans of the trace, by name.
    fn spans(&self, trace: &str) -> BTreeMap<String, Span> {
        let spans = self.0.lock().unwrap();
        let of_trace = spans.iter().filter(|span| hex(&span.trace_id) == trace);
        of_trace.map(|span| (span.name.clone(), span.clone())).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_from_a_request_or_event_to_its_query() -> Result<()> {
    let setting = Setting::new().await?;
    let (collector, url) = Collector::start(&setting.services).await?;
    let ca = setting.services.authority.certificate_file().display().to_string();
    let configuration = setting
        .configuration
        .with("MUSTER__TRACES__ENDPOINT", url)
        .with("MUSTER__TRACES__CA_FILE", ca)
        .with("MUSTER__TRACES__SAMPLE_PERCENT", "0");
    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    let id = community(&client, "tabr").await?;

    client
        .clone()
        .in_trace(TraceParent::parse("00-not-a-trace-01")?)
        .community(id)
        .ask(&community::Stats {})
        .await?;
    client
        .clone()
        .in_trace(TraceParent::parse(format!("00-{TRACE}-{PARENT}-01"))?)
        .community(id)
        .ask(&community::Stats {})
        .await?;
    eventually("the spans", async || collector.spans(TRACE).contains_key("community.stats")).await?;
    let spans = collector.spans(TRACE);
    let request = spans.get("community.stats").context("no span of the request")?;
    ensure!(hex(&request.parent_span_id) == PARENT, "{request:?}");
    let query = spans.get("community_stats").context("no span of the query")?;
    ensure!(query.parent_span_id == request.span_id, "{query:?}");
    ensure!(
        collector.0.lock().unwrap().iter().all(|span| hex(&span.trace_id) == TRACE),
        "none else is sampled"
    );

    let of_an_event = "22222222222222222222222222222222";
    let traceparent = Some(TraceParent::parse(format!("00-{of_an_event}-{PARENT}-01"))?);
    publisher.publish(&Event { traceparent, ..Guild::new("tabr").join_guild() }).await?;
    eventually("the event's spans", async || collector.spans(of_an_event).contains_key("events")).await?;
    let spans = collector.spans(of_an_event);
    let batch = spans.get("events").context("no span of the batch")?;
    ensure!(hex(&batch.parent_span_id) == PARENT, "{batch:?}");
    let query = spans.get("events_apply").context("no span of the batch's transaction")?;
    ensure!(query.parent_span_id == batch.span_id, "{query:?}");

    // What waits is handed over at the end.
    let last = "11111111111111111111111111111111";
    client
        .clone()
        .in_trace(TraceParent::parse(format!("00-{last}-{PARENT}-01"))?)
        .community(id)
        .ask(&community::Stats {})
        .await?;
    ensure!(worker.stop()? == Some(0));
    ensure!(collector.spans(last).contains_key("community_stats"), "the last spans were lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_cannot_be_trusted_gets_nothing_and_harms_nothing() -> Result<()> {
    let setting = Setting::new().await?;
    let (collector, url) = Collector::start(&setting.services).await?;
    // Without its authority, the collector's certificate is one of a stranger.
    let configuration = setting
        .configuration
        .with("MUSTER__TRACES__ENDPOINT", url)
        .with("MUSTER__TRACES__SAMPLE_PERCENT", "100");
    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    community(&client, "tabr").await?;
    let log = || std::fs::read_to_string(&worker.log).unwrap_or_default();
    eventually("the refusal in the log", async || log().contains("the collector rejects spans")).await?;
    ensure!(collector.0.lock().unwrap().is_empty());
    ensure!(worker.stop()? == Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collectors_authority_is_checked_and_changes_under_a_working_worker() -> Result<()> {
    let setting = Setting::new().await?;
    let (_collector, url) = Collector::start(&setting.services).await?;
    let directory = tempfile::tempdir()?;
    let stranger = xtask::services::Authority::create(directory.path(), "stranger")?;
    let ca = directory.path().join("collector-ca.pem");
    std::fs::copy(stranger.certificate_file(), &ca)?;
    let configuration = setting
        .configuration
        .with("MUSTER__TRACES__ENDPOINT", url)
        .with("MUSTER__TRACES__CA_FILE", ca.display().to_string())
        .with("MUSTER__TRACES__SAMPLE_PERCENT", "100");
    let report = String::from_utf8(configuration.run("check").await?.stdout)?;
    ensure!(report.contains(&format!("file           traces {}: 1 certificate\n", ca.display())), "{report}");
    ensure!(report.contains("certificate    traces trusts: CN=stranger"), "{report}");

    let worker = configuration.serve(&setting.services)?;
    let (client, publisher) = setting.client().await?;
    let mut tabr = Guild::new("tabr");
    publisher.publish(&tabr.join_guild()).await?;
    community(&client, "tabr").await?;
    let logged = |text: &str| std::fs::read_to_string(&worker.log).is_ok_and(|log| log.contains(text));
    eventually("the refusal", async || logged("the collector rejects spans")).await?;
    std::fs::write(&ca, "no certificate")?;
    eventually("the refusal of the file", async || logged("collector-ca.pem")).await?;
    std::fs::copy(setting.services.authority.certificate_file(), &ca)?;
    eventually("the rotation", async || logged("changed certificates or secrets are in use")).await?;
    publisher.publish(&tabr.join("paul")).await?;
    eventually("traces", async || logged("the collector takes traces again")).await?;
    ensure!(worker.stop()? == Some(0));
    std::fs::write(&ca, "no certificate")?;
    let refused = configuration.run("check").await?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        refused.status.code() == Some(64) && said.contains("traces: ") && said.contains("collector-ca.pem"),
        "{said}"
    );
    Ok(())
}
