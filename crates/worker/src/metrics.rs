//! The worker's metrics, each named, described and written here. Labels are bounded: endpoints, codes, words; never ids.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use muster_domain::TlsPolicy;
use muster_messaging::connection::LinkCounts;
use muster_messaging::events::consumer::{Happening, Lag};
use muster_messaging::service::Observation;
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::material::{Peer, TlsVersion};
use muster_storage::PoolStatus;
use time::OffsetDateTime;

use crate::limits::Scope;

const REQUESTS: &str = "muster_requests_total";
const REQUEST_SECONDS: &str = "muster_request_duration_seconds";
const CLAMPED: &str = "muster_limits_clamped_total";
const CUT: &str = "muster_pages_cut_total";
const RATE_LIMITED: &str = "muster_rate_limited_total";
const EVENTS: &str = "muster_events_total";
const BATCH: &str = "muster_batch_events";
const BATCH_SECONDS: &str = "muster_batch_duration_seconds";
const PENDING: &str = "muster_events_pending";
const UNACKNOWLEDGED: &str = "muster_events_unacknowledged";
const OLDEST: &str = "muster_events_oldest_pending_seconds";
const DROPPED: &str = "muster_events_dropped";
const POOL: &str = "muster_database_connections";
const POOL_WAITING: &str = "muster_database_waiting";
const RECONNECTS: &str = "muster_nats_reconnects";
const REFUSALS: &str = "muster_nats_refusals";
const SLOW: &str = "muster_nats_slow_consumers";
const READY: &str = "muster_ready";
const POLICY: &str = "muster_tls_policy_info";
const CERTIFICATE_DAYS: &str = "muster_certificate_expiry_days";
const ROTATIONS: &str = "muster_rotations_total";
const PEERS: &str = "muster_tls_handshakes";
const PEER: &str = "muster_tls_peer_info";
const BUILD: &str = "muster_build_info";

/// Seconds, from half a millisecond to the longest deadline.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Events, up to the largest batch.
const SIZES: [f64; 7] = [1.0, 5.0, 20.0, 50.0, 100.0, 250.0, 500.0];

/// Installs the recorder. What is recorded before is lost.
pub(crate) fn install(policy: TlsPolicy) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?
        .set_buckets_for_metric(Matcher::Full(BATCH.to_owned()), &SIZES)?
        .install_recorder()?;
    describe_counter!(REQUESTS, "Requests by endpoint and code; ok for an answer");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "From a request's arrival to its answer");
    describe_counter!(CLAMPED, "Requests whose limit was outside its bounds");
    describe_counter!(CUT, "Pages cut at a row to fit into one message");
    describe_counter!(RATE_LIMITED, "Requests refused for their rate, by whose limit was met");
    describe_counter!(EVENTS, "Events by what became of them");
    describe_histogram!(BATCH, Unit::Count, "Events of one transaction");
    describe_histogram!(BATCH_SECONDS, Unit::Seconds, "From a batch's begin to its commit");
    describe_gauge!(PENDING, Unit::Count, "Events of the stream that were not delivered yet");
    describe_gauge!(UNACKNOWLEDGED, Unit::Count, "Events that were delivered and not acknowledged yet");
    describe_gauge!(OLDEST, Unit::Seconds, "Age of the oldest event that is not acknowledged; 0 without one");
    describe_gauge!(DROPPED, Unit::Count, "Events that the stream dropped before they were acknowledged");
    describe_gauge!(POOL, Unit::Count, "Database connections by state");
    describe_gauge!(POOL_WAITING, Unit::Count, "Callers that wait for a database connection");
    describe_gauge!(RECONNECTS, Unit::Count, "NATS connections after the first");
    describe_gauge!(REFUSALS, Unit::Count, "Refusals of the credentials by NATS servers");
    describe_gauge!(SLOW, Unit::Count, "NATS messages dropped because they were not read fast enough");
    describe_gauge!(READY, "1 when a part of the worker is ready, else 0");
    describe_gauge!(POLICY, "The TLS policy, as a label");
    describe_gauge!(CERTIFICATE_DAYS, "Days until a certificate expires");
    describe_counter!(ROTATIONS, "Changes of certificates or secrets on disk, by outcome: taken or refused");
    describe_gauge!(PEERS, Unit::Count, "Servers' certificates by verdict, since the last rotation");
    describe_gauge!(PEER, "Servers by the TLS version they were last spoken to with");
    describe_gauge!(BUILD, "The running version, as a label");
    for outcome in ["taken", "refused"] {
        counter!(ROTATIONS, "outcome" => outcome).increment(0);
    }
    gauge!(POLICY, "policy" => policy.to_string()).set(1);
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1);
    Ok(handle)
}

/// Counts one request.
pub(crate) fn request(observation: &Observation) {
    let endpoint = observation.endpoint.name();
    let code = observation.error.map_or("ok", |code| code.as_str());
    counter!(REQUESTS, "endpoint" => endpoint, "code" => code).increment(1);
    histogram!(REQUEST_SECONDS, "endpoint" => endpoint).record(observation.latency);
    if observation.clamped {
        counter!(CLAMPED, "endpoint" => endpoint).increment(1);
    }
    if observation.cut {
        counter!(CUT, "endpoint" => endpoint).increment(1);
    }
}

pub(crate) fn rate_limited(scope: Scope) {
    counter!(RATE_LIMITED, "scope" => scope.as_str()).increment(1);
}

/// Counts what happened to events.
pub(crate) fn event(happening: &Happening) {
    let (outcome, number) = match happening {
        // Fresh and repeated events are told apart where they are applied.
        Happening::Applied { events, took } => {
            histogram!(BATCH).record(count(*events));
            histogram!(BATCH_SECONDS).record(*took);
            return;
        }
        Happening::Waiting { events } => ("waiting", *events),
        Happening::Outage => ("outage", 1),
        Happening::Unknown => ("unknown_type", 1),
        Happening::Malformed => ("malformed", 1),
        Happening::GivenUp => ("given_up", 1),
        Happening::Delayed => ("delayed", 1),
        Happening::NotBuried => ("not_buried", 1),
        Happening::NotAcknowledged => ("not_acknowledged", 1),
    };
    events(outcome, number);
}

/// Counts applied events: fresh ones and those that had been applied before.
pub(crate) fn applied(applied: muster_storage::Applied) {
    events("applied", applied.fresh);
    events("duplicate", applied.duplicates);
}

fn events(outcome: &'static str, number: usize) {
    counter!(EVENTS, "outcome" => outcome).increment(u64::try_from(number).unwrap_or(u64::MAX));
}

pub(crate) fn lag(lag: &Lag) {
    gauge!(PENDING).set(wide(lag.pending));
    gauge!(UNACKNOWLEDGED).set(wide(lag.unacknowledged));
    gauge!(OLDEST).set(lag.oldest.unwrap_or(Duration::ZERO).as_secs_f64());
    gauge!(DROPPED).set(wide(lag.dropped));
}

pub(crate) fn pool(status: PoolStatus) {
    gauge!(POOL, "state" => "in_use").set(count(status.in_use));
    gauge!(POOL, "state" => "open").set(count(status.open));
    gauge!(POOL, "state" => "max").set(count(status.size));
    gauge!(POOL_WAITING).set(count(status.waiting));
}

pub(crate) fn link(counts: LinkCounts) {
    gauge!(RECONNECTS).set(wide(counts.reconnects));
    gauge!(REFUSALS).set(wide(counts.refusals));
    gauge!(SLOW).set(wide(counts.slow_consumers));
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

/// Counts one change of certificates or secrets, by what became of it.
pub(crate) fn rotation(outcome: &'static str) {
    counter!(ROTATIONS, "outcome" => outcome).increment(1);
}

/// Shows how servers, `place` being `nats` or `postgres`, fared in their handshakes.
pub(crate) fn peers(place: &'static str, accepted: u64, refused: u64, peers: &[Peer]) {
    gauge!(PEERS, "place" => place, "verdict" => "accepted").set(wide(accepted));
    gauge!(PEERS, "place" => place, "verdict" => "refused").set(wide(refused));
    for version in [TlsVersion::Tls12, TlsVersion::Tls13] {
        let number = peers.iter().filter(|peer| peer.version == Some(version)).count();
        gauge!(PEER, "place" => place, "version" => version.to_string()).set(count(number));
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
