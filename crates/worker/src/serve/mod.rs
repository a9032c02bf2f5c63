//! The worker's life: connect, work, watch, drain.

mod http;
mod outbox;
mod readiness;
mod rotation;
mod session;
mod standby;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use muster_messaging::connection::{LinkCounts, LinkFailure, LinkState};
use muster_messaging::events::consumer::{Consumer, Unfit};
use muster_messaging::events::dead_letter::DeadLetters;
use muster_messaging::events::fault::{Fault, FaultScope};
use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::material::Material;
use muster_storage::Store;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use self::http::Http;
use self::readiness::{Part, Readiness};
use self::rotation::{Expiry, Files};
use self::session::Session;
use crate::chain::chain;
use crate::connect::Server;
use crate::descriptors;
use crate::failure::Failure;
use crate::fitness;
use crate::metrics;
use crate::rate_limit::RateLimits;
use crate::settings::{Settings, SettingsError};
use crate::signals::Signals;
use crate::start;
use crate::traces::Exporting;

/// The interval of the readiness checks.
const LOOK: Duration = Duration::from_secs(1);
/// How long the database may take to answer a look. Together they bound how late readiness goes off.
const PING: Duration = Duration::from_secs(3);
/// How often the ids of old events are forgotten, and in how many rounds at most each time. A round deletes up to a thousand
/// ids of each shard where they cannot be dropped by the day.
const PRUNE: Duration = Duration::from_mins(1);
const PRUNE_ROUNDS: usize = 100;
/// How often the broker is asked how far reading is behind.
const LAG: Duration = Duration::from_secs(5);

/// Runs until a signal, or until the worker cannot go on. A second signal ends it without a drain.
pub(crate) async fn serve(
    settings: Settings,
    mut signals: Signals,
    traces: Option<Exporting>,
) -> Result<(), Failure> {
    let started = Instant::now();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        environment = %settings.environment,
        tls.policy = %settings.policy,
        "muster-worker starts"
    );
    let handle = metrics::install(settings.policy)?;
    let readiness = Readiness::new();
    let descriptors = descriptors::provide(settings.database.connections());
    if let Some((limit, needed)) = descriptors.too_few {
        tracing::warn!(
            descriptors.limit = limit,
            descriptors.needed = needed,
            "the process may open too few files: raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
    readiness.set(Part::Descriptors, !descriptors::are_used_up());
    let mut files = Files::new(settings.files());
    let http = Http::start(settings.http, descriptors.http, readiness.clone(), handle.clone()).await?;
    let settings = Arc::new(settings);
    let limits = Arc::new(RateLimits::new(settings.limits));
    let opening = start::wait(settings.startup, async || {
        // What was mended while it waited is in use, and no rotation.
        files = Files::new(settings.files());
        Session::open(&settings, Arc::clone(&limits), Some(&readiness)).await
    });
    let session = tokio::select! {
        session = opening => session?,
        signal = signals.next() => {
            tracing::info!(%signal, "muster-worker was stopped while it started");
            http.stop(settings.shutdown).await;
            return Ok(());
        }
    };
    readiness.set(Part::Running, true);
    let (server_version, server_name) = session.connection.server();
    tracing::info!(
        nats.server = server_name,
        nats.version = &server_version,
        http.address = %http.address,
        took_ms = started.elapsed().as_secs_f64() * 1000.0,
        "muster-worker is ready"
    );

    let mut watch = Watch {
        settings: Arc::clone(&settings),
        limits,
        readiness: readiness.clone(),
        files,
        expiry: Expiry::default(),
        counted: Counted::default(),
        traces: traces.as_ref().map(Exporting::material),
        nats_version: server_version,
        opening: JoinSet::new(),
        retired: JoinSet::new(),
        redial: Instant::now() + rotation::REDIAL_EVERY,
    };
    let mut session = session;
    let ended = tokio::select! {
        signal = signals.next() => {
            tracing::info!(%signal, "muster-worker stops: no more events or requests are taken");
            None
        }
        failure = watch.run(&mut session) => {
            tracing::info!("muster-worker stops: no more events or requests are taken");
            Some(failure)
        }
    };
    readiness.set(Part::Running, false);
    let drained = tokio::select! {
        drained = drain(session, watch, http, traces) => drained,
        // What was not acknowledged is delivered again.
        signal = signals.insists() => return Err(Failure::Signal(signal)),
    };
    match (ended, drained) {
        (Some(failure), _) => Err(failure),
        (None, Err(failure)) => Err(failure),
        (None, Ok(())) => {
            tracing::info!("muster-worker has stopped");
            Ok(())
        }
    }
}

/// Drains and stops everything, within the time that a stop may take.
async fn drain(
    session: Session,
    mut watch: Watch,
    http: Http,
    traces: Option<Exporting>,
) -> Result<(), Failure> {
    let bound = watch.settings.shutdown;
    let deadline = Instant::now() + bound;
    let left = || deadline.saturating_duration_since(Instant::now());
    // What a rotation was about to open is not opened. If it was opened just now, it ends as what works does.
    watch.opening.abort_all();
    while let Some(opened) = watch.opening.join_next().await {
        if let Ok((_, Ok(opened))) = opened {
            watch.retire(opened);
        }
    }
    let drained = session.stop(bound).await;
    // What a rotation has put aside ends within its own time, which is the same.
    let retired = async { while watch.retired.join_next().await.is_some() {} };
    // Past the deadline it is dropped; what it had not acknowledged is delivered again.
    let _ = tokio::time::timeout_at(deadline, retired).await;
    http.stop(left()).await;
    if let Some(traces) = traces {
        traces.stop(left()).await;
    }
    drained
}

async fn prune_applied(store: Store, remember: Duration) {
    for _ in 0..PRUNE_ROUNDS {
        match store.applied_events_prune(remember).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %error, "the ids of old events were not pruned: it is tried again in a minute");
                return;
            }
        }
    }
}

/// The part of a session's counts that the metrics already have.
#[derive(Default)]
struct Counted {
    link: LinkCounts,
    handshakes: HashMap<Server, (u64, u64)>,
    faults: Vec<Fault>,
}

struct Watch {
    settings: Arc<Settings>,
    limits: Arc<RateLimits>,
    readiness: Readiness,
    files: Files,
    expiry: Expiry,
    counted: Counted,
    /// The authorities that are trusted for the collector of traces, where there is one.
    traces: Option<Arc<Material>>,
    /// The version of the NATS server that was judged last.
    nats_version: String,
    /// A session that is being opened, and the digest of the files where they have changed.
    opening: JoinSet<(Option<u64>, Result<Session, Failure>)>,
    /// Sessions that a rotation has replaced, while they finish their work.
    retired: JoinSet<()>,
    /// From when on the connections are made anew, if a server's certificate ends soon.
    redial: Instant,
}

impl Watch {
    /// Keeps readiness and gauges current, takes up changed files, and returns when the worker cannot go on.
    async fn run(&mut self, session: &mut Session) -> Failure {
        let mut state = session.connection.state();
        let mut files = interval(rotation::LOOK);
        files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK);
        let mut lag = interval(LAG);
        let mut prune = interval(PRUNE);
        let (mut reporting, mut pruning) = (JoinSet::new(), JoinSet::new());
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        lag.set_missed_tick_behavior(MissedTickBehavior::Delay);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = session.consuming.ended() => {
                    self.readiness.set(Part::Consumer, false);
                    return Failure::Consumer(ended);
                }
                changed = state.changed() => {
                    let now = *state.borrow_and_update();
                    self.readiness.set(Part::Nats, now == LinkState::Connected);
                    let link = session.connection.counts();
                    metrics::link(link, std::mem::replace(&mut self.counted.link, link));
                    match now {
                        LinkState::Failed(failure) => return Failure::Link(failure),
                        _ if changed.is_err() => return Failure::Link(LinkFailure::Unreachable),
                        LinkState::Connected => self.judge(session),
                        _ => {}
                    }
                }
                _ = look.tick() => {
                    let answer = timeout(PING, session.store.ping()).await;
                    // Not even this was answered: what is idle goes to the same server, which is gone or hangs.
                    if answer.is_err() {
                        session.store.close_idle();
                    }
                    let late = |_| format!("no answer within {} s", PING.as_secs());
                    let answer = answer.map_err(late).and_then(|answer| answer.map_err(|error| chain(&error)));
                    self.readiness.judge(Part::Postgres, answer);
                    self.readiness.set(Part::Descriptors, !descriptors::are_used_up());
                    session.store.set_folding(!session.consuming.may_repeat_forgotten());
                    let faults = session.consuming.faults();
                    let reads = faults.iter().all(|fault| fault.scope != FaultScope::Store);
                    self.readiness.set(Part::Consumer, reads && session.consuming.is_reading());
                    metrics::store_faults(&faults, &mut self.counted.faults);
                    metrics::pool(session.store.pool_status());
                    let link = session.connection.counts();
                    metrics::link(link, std::mem::replace(&mut self.counted.link, link));
                    metrics::in_flight(session.in_flight());
                    self.limits.report();
                    self.certificates(session);
                }
                _ = files.tick() => {
                    let changed = self.files.look().then(|| self.files.seen());
                    if self.opening.is_empty() && (changed.is_some() || self.is_redial_due(session)) {
                        let (settings, limits) = (Arc::clone(&self.settings), Arc::clone(&self.limits));
                        let traces = self.traces.clone();
                        self.opening.spawn(async move {
                            (changed, reopen(&settings, limits, traces.as_deref()).await)
                        });
                    }
                }
                Some(opened) = self.opening.join_next() => match opened {
                    Ok((seen, opened)) => if self.take(session, seen, opened) {
                        state = session.connection.state();
                        state.mark_changed();
                    },
                    Err(defect) => tracing::error!(error = %defect, "the rotation task panicked"),
                },
                _ = lag.tick() => {
                    // Apart, for a broker that is away lets it wait for long, and readiness must not.
                    while reporting.try_join_next().is_some() {}
                    if reporting.is_empty() {
                        reporting.spawn(report_lag(
                            session.consumer.clone(),
                            session.dead_letters.clone(),
                            session.store.clone(),
                        ));
                    }
                }
                _ = prune.tick() => {
                    // One at a time: much that falls due at once takes longer than a minute.
                    while pruning.try_join_next().is_some() {}
                    if pruning.is_empty() {
                        pruning.spawn(prune_applied(session.store.clone(), self.settings.events.remember));
                    }
                }
            }
        }
    }

    fn is_redial_due(&self, session: &Session) -> bool {
        if Instant::now() < self.redial {
            return false;
        }
        let materials = session.materials.iter().filter_map(|(_, material)| material.as_ref());
        let shown: Vec<Certificate> =
            materials.flat_map(|material| material.peers()).map(|peer| peer.certificate).collect();
        rotation::ends_soon(&shown)
    }

    /// Warns of a server whose version is below the floor: the one of the start may have been another.
    fn judge(&mut self, session: &Session) {
        let (version, _) = session.connection.server();
        if version != self.nats_version {
            // Only a start refuses.
            let _ = fitness::hold(&fitness::NATS, &version, Unfit::Warn);
            self.nats_version = version;
        }
    }

    /// Replaces the session by one that was opened with the files as they are now, and lets the old one end. If it could not be opened, the old
    /// session stays, and what of the files has changed (`seen`) is refused.
    fn take(&mut self, session: &mut Session, seen: Option<u64>, opened: Result<Session, Failure>) -> bool {
        match opened {
            Ok(opened) => {
                self.redial = Instant::now() + rotation::REDIAL_EVERY;
                // A fault that was shown stays shown until the new session says otherwise.
                let faults = std::mem::take(&mut self.counted.faults);
                self.counted = Counted { faults, ..Counted::default() };
                let old = std::mem::replace(session, opened);
                self.retire(old);
                let Some(seen) = seen else {
                    tracing::info!("the connections are new: a server's certificate was to end soon");
                    return true;
                };
                self.files.taken(seen);
                metrics::rotation("taken");
                let serials: Vec<String> = session
                    .materials
                    .iter()
                    .filter_map(|(_, material)| {
                        material.as_ref()?.own().first().map(|own| own.serial.clone())
                    })
                    .collect();
                tracing::info!(
                    certificates = serials.join(", "),
                    "changed certificates or secrets are in use, on new connections"
                );
                true
            }
            Err(failure) => {
                self.redial = Instant::now() + rotation::REDIAL_AGAIN;
                let Some(seen) = seen else {
                    tracing::warn!(
                        error = failure.chain(),
                        "new connections could not be made, to see whether a server's certificate was replaced: tried again in an hour"
                    );
                    return false;
                };
                metrics::rotation("refused");
                if self.files.refused(seen) {
                    tracing::error!(
                        error = failure.chain(),
                        "changed certificates or secrets are refused: what was in use stays, and they are tried again"
                    );
                }
                false
            }
        }
    }

    /// Lets a session finish its work.
    fn retire(&mut self, old: Session) {
        let deadline = self.settings.shutdown;
        self.retired.spawn(async move {
            if let Err(failure) = old.stop(deadline).await {
                tracing::warn!(error = failure.chain(), "the replaced connections did not close cleanly");
            }
        });
    }

    fn certificates(&mut self, session: &Session) {
        for (place, material) in &session.materials {
            let Some(material) = material else { continue };
            let (own, authority, server) = match place {
                Server::Nats => ("nats_own", "nats_authority", "nats_server"),
                Server::Postgres => ("postgres_own", "postgres_authority", "postgres_server"),
            };
            let peers = material.peers();
            let servers: Vec<Certificate> = peers.iter().map(|peer| peer.certificate.clone()).collect();
            let (authorities, chain) = material.in_use();
            for (whose, certificates) in [(own, chain), (authority, authorities), (server, servers)] {
                metrics::certificate(whose, &certificates);
                self.expiry.watch(whose, &certificates);
            }
            let counts = (material.accepted(), material.refused());
            let (accepted, refused) = self.counted.handshakes.insert(*place, counts).unwrap_or_default();
            metrics::handshakes(*place, counts.0.saturating_sub(accepted), counts.1.saturating_sub(refused));
            metrics::peers(*place, &peers);
        }
    }
}

/// Opens a session with the files as they are now, after it has checked the collector's authorities.
async fn reopen(
    settings: &Settings,
    limits: Arc<RateLimits>,
    traces: Option<&Material>,
) -> Result<Session, Failure> {
    if let Some(material) = traces {
        material.reload().map_err(|error| SettingsError::new(format!("traces: {}", chain(&error))))?;
    }
    Session::open(settings, limits, None).await
}

async fn report_lag(consumer: Consumer, dead_letters: DeadLetters, store: Store) {
    match consumer.lag().await {
        Ok(lag) => metrics::lag(&lag),
        // That the stream is gone is found by the reading itself, which ends by it.
        Err(error) => tracing::debug!(error = %error, "the lag of events is not known"),
    }
    match dead_letters.kept().await {
        Ok(kept) => metrics::dead_letters(&kept),
        Err(error) => tracing::debug!(error = %error, "the number of dead letters is not known"),
    }
    match store.changes_waiting().await {
        Ok(waiting) => metrics::changes_waiting(&waiting),
        Err(error) => tracing::debug!(error = %error, "the number of waiting changes is not known"),
    }
}
