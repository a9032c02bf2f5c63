//! The worker's metrics: [`METRICS`] names and describes every one, and each is written by a function here. Labels are
//! bounded: endpoints, codes, words; never ids.

use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use muster_domain::{Event, EventType, TlsPolicy};
use muster_messaging::api::{ENDPOINTS, ErrorCode};
use muster_messaging::connection::LinkCounts;
use muster_messaging::events::consumer::{ConsumerEvent, Lag, Outcome};
use muster_messaging::events::dead_letter::KeptDeadLetters;
use muster_messaging::events::fault::{Fault, FaultScope};
use muster_messaging::service::Observation;
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::material::{Peer, TlsVersion};
use muster_storage::{PoolStatus, QueryObservation, StandbyState, WaitingChanges};
use time::OffsetDateTime;

use crate::connect::Server;

const REQUESTS: &str = "muster_requests_total";
const REQUEST_SECONDS: &str = "muster_request_duration_seconds";
const REQUESTS_IN_FLIGHT: &str = "muster_requests_in_flight";
const CLAMPED: &str = "muster_limits_clamped_total";
const TRUNCATED: &str = "muster_pages_cut_total";
const RATE_LIMIT: &str = "muster_rate_limit_decisions_total";
const RATE_LIMIT_COUNTERS: &str = "muster_rate_limit_counters";
const EVENTS: &str = "muster_events_total";
const REDELIVERIES: &str = "muster_event_redeliveries_total";
const BATCH: &str = "muster_batch_events";
const BATCH_SECONDS: &str = "muster_batch_duration_seconds";
const PENDING: &str = "muster_events_pending";
const UNACKNOWLEDGED: &str = "muster_events_unacknowledged";
const OLDEST: &str = "muster_events_oldest_pending_seconds";
const DROPPED: &str = "muster_events_dropped";
const STORE_FAULTS: &str = "muster_store_faults";
const DEAD_LETTERS: &str = "muster_dead_letters";
const STREAM_FILLED: &str = "muster_stream_filled_percent";
const CHANGES_PUBLISHED: &str = "muster_changes_published_total";
const CHANGES_WAITING: &str = "muster_changes_waiting";
const CHANGES_OLDEST: &str = "muster_changes_oldest_waiting_seconds";
const QUERY_SECONDS: &str = "muster_query_duration_seconds";
const QUERY_FAILURES: &str = "muster_query_failures_total";
const POOL: &str = "muster_database_connections";
const POOL_WAITING: &str = "muster_database_waiting";
const STANDBY: &str = "muster_standby_in_use";
const STANDBY_LAG: &str = "muster_standby_lag_seconds";
const STANDBY_FAILURES: &str = "muster_standby_failures_total";
const LISTS: &str = "muster_lists_total";
const RECONNECTS: &str = "muster_nats_reconnects_total";
const REFUSALS: &str = "muster_nats_refusals_total";
const SLOW: &str = "muster_nats_slow_consumers_total";
const READY: &str = "muster_ready";
const POLICY: &str = "muster_tls_policy_info";
const HANDSHAKES: &str = "muster_tls_handshakes_total";
const PEERS: &str = "muster_tls_peers";
const CERTIFICATE_DAYS: &str = "muster_certificate_expiry_days";
const LOG_DROPPED: &str = "muster_log_lines_dropped_total";
const ROTATIONS: &str = "muster_rotations_total";
const BUILD: &str = "muster_build_info";

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// Prometheus's word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric, as it is described to Prometheus and by `muster-worker describe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Its unit.
    pub(crate) unit: &'static str,
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

const fn counter(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Counter, unit, labels, help }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, labels, help }
}

const fn histogram(
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Histogram, unit, labels, help }
}

/// Every metric there is. `muster-worker describe` prints this list, and documents, alerts and the dashboard are checked
/// against it.
#[rustfmt::skip]
pub(crate) const METRICS: &[Metric] = &[
    counter(REQUESTS, "requests", &["endpoint", "code"], "Requests by endpoint and code; ok for an answer"),
    histogram(REQUEST_SECONDS, "seconds", &["endpoint"], "From a request's arrival to its answer"),
    gauge(REQUESTS_IN_FLIGHT, "requests", &[], "Requests that are being worked on"),
    counter(CLAMPED, "requests", &["endpoint"], "Requests whose limit was outside its bounds"),
    counter(TRUNCATED, "pages", &["endpoint"], "Pages truncated at a row to fit into one message"),
    counter(RATE_LIMIT, "decisions", &["scope", "decision"], "Requests allowed, or refused by the rate limit, by whose limit decided: community or caller"),
    gauge(RATE_LIMIT_COUNTERS, "counters", &["scope"], "Communities and callers whose rate is remembered"),
    counter(EVENTS, "events", &["type", "outcome"], "Events by their type and what became of them"),
    counter(REDELIVERIES, "events", &[], "Events that were delivered again: after a failure, a lost acknowledgement or a deferral"),
    histogram(BATCH, "events", &[], "Events of one transaction"),
    histogram(BATCH_SECONDS, "seconds", &[], "From a batch's begin to its commit"),
    gauge(PENDING, "events", &[], "Events of the stream that were not delivered yet"),
    gauge(UNACKNOWLEDGED, "events", &[], "Events that were delivered and not acknowledged yet"),
    gauge(OLDEST, "seconds", &[], "Age of the oldest event that is not acknowledged; 0 without one"),
    counter(DROPPED, "events", &[], "Events that the stream dropped before they were applied; each replica counts every one"),
    gauge(STORE_FAULTS, "faults", &["scope", "sqlstate"], "Faults that keep events from being applied: 1 of the store, or the number of communities; sqlstate is the server's code or none"),
    gauge(DEAD_LETTERS, "events", &[], "Dead letters that are kept"),
    gauge(STREAM_FILLED, "percent", &["stream"], "How full EVENTS and DEAD_LETTERS are: applied events are kept until they are too old, and what is full refuses new ones"),
    counter(CHANGES_PUBLISHED, "changes", &[], "Changes that were published to siblings"),
    gauge(CHANGES_WAITING, "changes", &[], "Changes that wait in the database to be published"),
    gauge(CHANGES_OLDEST, "seconds", &[], "Age of the oldest change that waits to be published; 0 without one"),
    histogram(QUERY_SECONDS, "seconds", &["query"], "From a query's connection to its answer, or to a write's commit"),
    counter(QUERY_FAILURES, "queries", &["query", "failure"], "Queries without an answer: no_connection, unavailable or defect"),
    gauge(POOL, "connections", &["state"], "Database connections: in_use, open and max"),
    gauge(POOL_WAITING, "callers", &[], "Callers that wait for a database connection"),
    gauge(STANDBY, "", &[], "1 while lists may be read from the standby that `database.read_url_file` names, else 0"),
    gauge(STANDBY_LAG, "seconds", &[], "How far that standby is behind the primary, at most"),
    counter(LISTS, "requests", &["server"], "Lists that may be read from a standby, by who answered: standby or primary"),
    counter(STANDBY_FAILURES, "requests", &[], "Lists that the standby did not answer, and the primary did"),
    counter(RECONNECTS, "connections", &[], "NATS connections after the first"),
    counter(REFUSALS, "refusals", &[], "Refusals of the credentials by NATS servers"),
    counter(SLOW, "messages", &[], "NATS messages dropped because they were not read fast enough"),
    gauge(READY, "", &["part"], "1 when a part of the worker is ready, else 0"),
    gauge(POLICY, "", &["policy"], "The TLS policy, as a label"),
    counter(HANDSHAKES, "handshakes", &["place", "verdict"], "Servers' certificates accepted or refused"),
    gauge(PEERS, "servers", &["place", "version"], "Servers by the TLS version they were last spoken to with"),
    gauge(CERTIFICATE_DAYS, "days", &["certificate"], "Days until a certificate expires"),
    counter(ROTATIONS, "rotations", &["outcome"], "Changes of certificates or secrets on disk: taken or refused"),
    counter(LOG_DROPPED, "lines", &[], "Lines of the log that were dropped because they were not read fast enough"),
    gauge(BUILD, "", &["version"], "The running version, as a label"),
    // Of the metrics-process crate.
    counter("process_cpu_seconds_total", "seconds", &[], "Total user and system CPU time spent in seconds."),
    gauge("process_open_fds", "descriptors", &[], "Number of open file descriptors."),
    gauge("process_max_fds", "descriptors", &[], "Maximum number of open file descriptors."),
    gauge("process_virtual_memory_bytes", "bytes", &[], "Virtual memory size in bytes."),
    gauge("process_virtual_memory_max_bytes", "bytes", &[], "Maximum amount of virtual memory available in bytes."),
    gauge("process_resident_memory_bytes", "bytes", &[], "Resident memory size in bytes."),
    gauge("process_start_time_seconds", "seconds", &[], "Start time of the process since unix epoch in seconds."),
    gauge("process_threads", "threads", &[], "Number of OS threads in the process."),
];

/// Every code of an answer.
const CODES: [&str; 9] = [
    "ok",
    ErrorCode::InvalidRequest.as_str(),
    ErrorCode::InvalidCursor.as_str(),
    ErrorCode::Forbidden.as_str(),
    ErrorCode::NotFound.as_str(),
    ErrorCode::PayloadTooLarge.as_str(),
    ErrorCode::RateLimited.as_str(),
    ErrorCode::Unavailable.as_str(),
    ErrorCode::Internal.as_str(),
];

/// Every outcome of an event.
const OUTCOMES: [&str; 11] = [
    "applied",
    "duplicate",
    "outage",
    "unknown_type",
    "malformed",
    "given_up",
    "retried",
    "deferred",
    "waiting",
    "dead_letter_failed",
    "not_acknowledged",
];

/// Seconds, from half a millisecond to the longest deadline.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// How often samples of histograms are added up. Until then each takes some 16 bytes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Installs the recorder, on a runtime. What is recorded before is lost.
pub(crate) fn install(policy: TlsPolicy) -> Result<PrometheusHandle, BuildError> {
    // Events, up to the largest batch.
    let sizes = [1.0, 5.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1000.0, Event::MAX_BATCH.into()];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(BATCH.to_owned()), &sizes)?
        .install_recorder()?;
    for Metric { name, kind, help, .. } in METRICS {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Histogram => describe_histogram!(*name, *help),
        }
    }
    begin();
    gauge!(POLICY, "policy" => policy.to_string()).set(1);
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1);
    tokio::spawn(keep_up(handle.clone(), UPKEEP));
    Ok(handle)
}

/// Adds samples of histograms up now and then. Only a scrape does so by itself: where nobody scrapes, each sample would be kept.
async fn keep_up(handle: PrometheusHandle, every: Duration) {
    let mut tick = tokio::time::interval(every);
    loop {
        tick.tick().await;
        handle.run_upkeep();
    }
}

/// Shows every counter from 0 on. Prometheus misses the first increment of a counter that appears with it.
fn begin() {
    for endpoint in ENDPOINTS {
        let endpoint = endpoint.name;
        for code in CODES {
            counter!(REQUESTS, "endpoint" => endpoint, "code" => code).increment(0);
        }
        counter!(CLAMPED, "endpoint" => endpoint).increment(0);
        counter!(TRUNCATED, "endpoint" => endpoint).increment(0);
    }
    for scope in [Scope::Community, Scope::Caller] {
        for decision in ["allowed", "refused"] {
            counter!(RATE_LIMIT, "scope" => scope.as_str(), "decision" => decision).increment(0);
        }
    }
    for event_type in EventType::ALL.into_iter().map(Some).chain([None]) {
        for outcome in OUTCOMES {
            events(event_type, outcome, 0);
        }
    }
    for outcome in ["taken", "refused"] {
        counter!(ROTATIONS, "outcome" => outcome).increment(0);
    }
    for scope in [FaultScope::Store, FaultScope::Community] {
        gauge!(STORE_FAULTS, "scope" => scope.as_str(), "sqlstate" => "none").set(0);
    }
    for server in ["standby", "primary"] {
        counter!(LISTS, "server" => server).increment(0);
    }
    for name in
        [REDELIVERIES, CHANGES_PUBLISHED, DROPPED, STANDBY_FAILURES, RECONNECTS, REFUSALS, SLOW, LOG_DROPPED]
    {
        counter!(name).increment(0);
    }
}

/// Counts one request.
pub(crate) fn request(observation: &Observation) {
    let endpoint = observation.endpoint.name;
    let code = observation.error.map_or("ok", ErrorCode::as_str);
    counter!(REQUESTS, "endpoint" => endpoint, "code" => code).increment(1);
    histogram!(REQUEST_SECONDS, "endpoint" => endpoint).record(observation.latency);
    if observation.clamped {
        counter!(CLAMPED, "endpoint" => endpoint).increment(1);
    }
    if observation.truncated {
        counter!(TRUNCATED, "endpoint" => endpoint).increment(1);
    }
}

/// The limit that a request was held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Community,
    Caller,
}

impl Scope {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Community => "community",
            Self::Caller => "caller",
        }
    }
}

/// Counts one decision on a request's rate.
pub(crate) fn rate_limit(scope: Scope, allowed: bool) {
    let decision = if allowed { "allowed" } else { "refused" };
    counter!(RATE_LIMIT, "scope" => scope.as_str(), "decision" => decision).increment(1);
}

/// Shows how many communities and callers are remembered.
pub(crate) fn rate_limit_counters(scope: Scope, counters: u64) {
    gauge!(RATE_LIMIT_COUNTERS, "scope" => scope.as_str()).set(wide(counters));
}

/// Counts what happened while events were read.
pub(crate) fn event(event: &ConsumerEvent) {
    match event {
        // Fresh and repeated events are told apart where they are applied.
        ConsumerEvent::Applied { events, took } => {
            histogram!(BATCH).record(count(*events));
            histogram!(BATCH_SECONDS).record(*took);
        }
        ConsumerEvent::Dropped { events } => counter!(DROPPED).increment(*events),
        ConsumerEvent::Outcome(event_type, outcome) => events(*event_type, of_outcome(*outcome), 1),
    }
}

const fn of_outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Outage => "outage",
        Outcome::Unknown => "unknown_type",
        Outcome::Malformed => "malformed",
        Outcome::GivenUp => "given_up",
        Outcome::Retried => "retried",
        Outcome::Deferred => "deferred",
        Outcome::Waiting => "waiting",
        Outcome::DeadLetterFailed => "dead_letter_failed",
        Outcome::NotAcknowledged => "not_acknowledged",
    }
}

/// Counts applied events: fresh ones and those that had been applied before.
pub(crate) fn applied(applied: &muster_storage::Applied) {
    for (outcome, types) in [("applied", &applied.fresh), ("duplicate", &applied.duplicates)] {
        for (event_type, number) in types {
            events(Some(*event_type), outcome, *number);
        }
    }
}

/// Counts redelivered events that were applied, or had been applied before.
pub(crate) fn redelivered(events: usize) {
    counter!(REDELIVERIES).increment(u64::try_from(events).unwrap_or(u64::MAX));
}

fn events(event_type: Option<EventType>, outcome: &'static str, number: usize) {
    let event_type = event_type.map_or("unknown", EventType::as_str);
    counter!(EVENTS, "type" => event_type, "outcome" => outcome)
        .increment(u64::try_from(number).unwrap_or(u64::MAX));
}

pub(crate) fn lag(lag: &Lag) {
    gauge!(PENDING).set(wide(lag.pending));
    gauge!(UNACKNOWLEDGED).set(wide(lag.unacknowledged));
    gauge!(OLDEST).set(lag.oldest.unwrap_or(Duration::ZERO).as_secs_f64());
    gauge!(STREAM_FILLED, "stream" => "EVENTS").set(wide(lag.filled_percent));
}

/// Counts changes that were published.
pub(crate) fn changes_published(changes: usize) {
    counter!(CHANGES_PUBLISHED).increment(u64::try_from(changes).unwrap_or(u64::MAX));
}

/// Shows the changes that wait to be published.
pub(crate) fn changes_waiting(waiting: &WaitingChanges) {
    gauge!(CHANGES_WAITING).set(wide(waiting.count));
    let age = waiting.oldest.map_or(0.0, |at| (OffsetDateTime::now_utc() - at).as_seconds_f64().max(0.0));
    gauge!(CHANGES_OLDEST).set(age);
}

/// Counts one query.
pub(crate) fn query(observation: &QueryObservation) {
    if let Some(took) = observation.took {
        histogram!(QUERY_SECONDS, "query" => observation.query).record(took);
    }
    if let Some(failure) = observation.failure {
        counter!(QUERY_FAILURES, "query" => observation.query, "failure" => failure.as_str()).increment(1);
    }
}

/// Shows the current faults in place of the ones shown before.
pub(crate) fn store_faults(faults: &[Fault], shown: &mut Vec<Fault>) {
    let show = |fault: &Fault, number| {
        let sqlstate = fault.code.clone().unwrap_or_else(|| "none".to_owned());
        gauge!(STORE_FAULTS, "scope" => fault.scope.as_str(), "sqlstate" => sqlstate).set(count(number));
    };
    for over in shown
        .iter()
        .filter(|over| faults.iter().all(|fault| (fault.scope, &fault.code) != (over.scope, &over.code)))
    {
        show(over, 0);
    }
    for fault in faults {
        show(fault, fault.count);
    }
    *shown = faults.to_vec();
}

pub(crate) fn dead_letters(kept: &KeptDeadLetters) {
    gauge!(DEAD_LETTERS).set(wide(kept.count));
    gauge!(STREAM_FILLED, "stream" => "DEAD_LETTERS").set(wide(kept.filled_percent));
}

pub(crate) fn pool(status: PoolStatus) {
    gauge!(POOL, "state" => "in_use").set(count(status.in_use));
    gauge!(POOL, "state" => "open").set(count(status.open));
    gauge!(POOL, "state" => "max").set(count(status.size));
    gauge!(POOL_WAITING).set(count(status.waiting));
}

/// Counts a list that may be read from a standby, by who answered it.
pub(crate) fn list(from_standby: bool) {
    let server = if from_standby { "standby" } else { "primary" };
    counter!(LISTS, "server" => server).increment(1);
}

/// Counts a list that the standby did not answer.
pub(crate) fn standby_failure() {
    counter!(STANDBY_FAILURES).increment(1);
}

/// Shows whether the standby is in use, and how far it is behind where that is known.
pub(crate) fn standby(state: &StandbyState) {
    let (in_use, lag) = match state {
        StandbyState::InUse(lag) => (true, Some(*lag)),
        StandbyState::NotInUse { lag, .. } => (false, *lag),
    };
    gauge!(STANDBY).set(u8::from(in_use));
    if let Some(lag) = lag {
        gauge!(STANDBY_LAG).set(lag.as_secs_f64());
    }
}

/// Counts what has happened to the connection since it had `before`.
pub(crate) fn link(now: LinkCounts, before: LinkCounts) {
    counter!(RECONNECTS).increment(now.reconnects.saturating_sub(before.reconnects));
    counter!(REFUSALS).increment(now.refusals.saturating_sub(before.refusals));
    counter!(SLOW).increment(now.slow_consumers.saturating_sub(before.slow_consumers));
}

/// Counts a refusal of the credentials by a server that was not connected to before.
pub(crate) fn refused() {
    counter!(REFUSALS).increment(1);
}

pub(crate) fn in_flight(requests: usize) {
    gauge!(REQUESTS_IN_FLIGHT).set(count(requests));
}

pub(crate) fn ready(part: &'static str, ready: bool) {
    gauge!(READY, "part" => part).set(u8::from(ready));
}

/// `whose` is a word for the certificate's place, such as `nats_own`.
pub(crate) fn certificate(whose: &'static str, certificates: &[Certificate]) {
    let now = OffsetDateTime::now_utc();
    if let Some(days) = certificates
        .iter()
        .map(|certificate| (certificate.not_after - now).as_seconds_f64() / 86_400.0)
        .reduce(f64::min)
    {
        gauge!(CERTIFICATE_DAYS, "certificate" => whose).set(days);
    }
}

/// Counts one change of certificates or secrets, by its outcome.
pub(crate) fn rotation(outcome: &'static str) {
    counter!(ROTATIONS, "outcome" => outcome).increment(1);
}

/// Counts lines of the log that nobody will read. Does not log itself.
pub(crate) fn log_lines_dropped(lines: u64) {
    counter!(LOG_DROPPED).increment(lines);
}

/// Counts handshakes with one of the servers.
pub(crate) fn handshakes(server: Server, accepted: u64, refused: u64) {
    let place = server.as_str();
    counter!(HANDSHAKES, "place" => place, "verdict" => "accepted").increment(accepted);
    counter!(HANDSHAKES, "place" => place, "verdict" => "refused").increment(refused);
}

/// Shows which TLS version each server was last spoken to with.
pub(crate) fn peers(server: Server, peers: &[Peer]) {
    let place = server.as_str();
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let number = peers.iter().filter(|peer| peer.version == Some(version)).count();
        gauge!(PEERS, "place" => place, "version" => version.to_string()).set(count(number));
    }
}

/// A gauge holds a 64-bit float, which is exact up to 2^53: more than can be counted here.
fn wide(number: u64) -> f64 {
    let (high, low) = (number >> 32, number & 0xffff_ffff);
    f64::from(u32::try_from(high).unwrap_or(u32::MAX)) * 4_294_967_296.0
        + f64::from(u32::try_from(low).unwrap_or(u32::MAX))
}

fn count(number: usize) -> f64 {
    wide(u64::try_from(number).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate_limit::tests::{MEMORY, resident};

    #[tokio::test]
    async fn samples_that_nobody_scrapes_take_bounded_memory() {
        let _alone = MEMORY.lock().await;
        let recorder = PrometheusBuilder::new().set_buckets(&BUCKETS).unwrap().build_recorder();
        let every = Duration::from_millis(5);
        let upkeep = tokio::spawn(keep_up(recorder.handle(), every));
        let flood = async |times: u32| {
            for _ in 0..times {
                metrics::with_local_recorder(&recorder, || {
                    (0..100_000).for_each(|_| histogram!("some_seconds").record(0.1));
                });
                tokio::time::sleep(2 * every).await;
            }
        };
        flood(5).await;
        let before = resident();
        flood(30).await;
        // Kept, they would take about 48 MB.
        let grown = resident().saturating_sub(before);
        assert!(grown < 24 << 20, "{grown} bytes more");
        upkeep.abort();
    }
}
