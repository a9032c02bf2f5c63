//! The worker's life: connect, work, watch, drain.

use std::sync::Arc;
use std::time::Duration;

use muster_domain::Event;
use muster_messaging::connection::{Connection, LinkFailure, LinkState};
use muster_messaging::events::consumer::{
    ApplyError, Consumer, ConsumerConfig, ConsumerError, Delivered, Reading,
};
use muster_messaging::service::{ServiceConfig, serve as serve_requests};
use muster_messaging::tls::material::Material;
use muster_storage::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::answers::Answers;
use crate::connect::{Configured, configure};
use crate::failure::Failure;
use crate::http::Http;
use crate::limits::RateLimits;
use crate::metrics;
use crate::readiness::{Part, Readiness};
use crate::settings::Settings;

/// How often the parts are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long the database may take to answer a look. Together they bound how late readiness goes off.
const PING: Duration = Duration::from_secs(3);
/// How often ids of events long applied are forgotten, and how many thousand at the most each time.
const PRUNE: Duration = Duration::from_mins(1);
const PRUNE_ROUNDS: usize = 100;
/// How often the broker is asked how far reading is behind.
const LAG: Duration = Duration::from_secs(5);

/// Runs until a signal, or until going on makes no sense.
pub(crate) async fn serve(settings: Settings) -> Result<(), Failure> {
    let started = Instant::now();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        environment = %settings.environment,
        tls.policy = %settings.policy,
        "muster-worker starts"
    );
    if !settings.policy.is_required()
        && let Some(plaintext) = settings.nats.servers.as_slice().iter().find(|server| !server.is_tls())
    {
        tracing::warn!(nats.server = %plaintext, tls.policy = %settings.policy, "NATS is spoken to in plaintext");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let readiness = Readiness::new();
    let handle = metrics::install(settings.policy)?;
    let Configured { nats, nats_material, database, database_material } = configure(&settings)?;
    let http = Http::start(settings.http, readiness.clone(), handle.clone()).await?;
    let store = Store::open(database.clone()).await?;
    readiness.set(Part::Migrations, true);
    readiness.set(Part::Postgres, true);
    let connection = Connection::open(nats).await?;
    readiness.set(Part::Nats, true);

    let consumer = Consumer::open(
        &connection,
        ConsumerConfig {
            batch: settings.events.batch,
            lanes: settings.events.in_flight,
            max_deliveries: settings.events.max_deliveries,
            observe: Arc::new(metrics::event),
            ..ConsumerConfig::default()
        },
    )
    .await?;
    let applying = store.clone();
    let mut reading = consumer.start(move |events| apply(applying.clone(), events));
    readiness.set(Part::Consumer, true);

    let answers =
        Arc::new(Answers { store: store.clone(), limits: Arc::new(RateLimits::new(settings.limits)) });
    let service = serve_requests(
        &connection,
        ServiceConfig {
            max_in_flight: settings.service.max_in_flight,
            deadline: settings.service.deadline,
            observe: Arc::new(metrics::request),
        },
        move |request| {
            let answers = Arc::clone(&answers);
            async move { answers.answer(request).await }
        },
    )
    .await?;
    readiness.set(Part::Running, true);
    let (server_version, server_name) = connection.server();
    tracing::info!(
        nats.server = server_name,
        nats.version = server_version,
        http.address = %http.address,
        took_ms = started.elapsed().as_secs_f64() * 1000.0,
        "muster-worker is ready"
    );

    let watch = Watch {
        store: store.clone(),
        connection: connection.clone(),
        consumer,
        materials: [("nats", nats_material), ("postgres", database_material)],
        readiness: readiness.clone(),
        remember: settings.events.remember,
    };
    let ended = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        failure = watch.run(&mut reading) => Some(failure),
    };

    readiness.set(Part::Running, false);
    tracing::info!("muster-worker stops: no more events or requests are taken");
    let deadline = Instant::now() + settings.shutdown;
    let left = || deadline.saturating_duration_since(Instant::now());
    let drained = async {
        let (events, requests) = tokio::join!(reading.stop(left()), service.stop(left()));
        events?;
        requests?;
        connection.drain(left()).await?;
        Ok::<(), Failure>(())
    };
    let drained = drained.await;
    store.close();
    http.stop().await;
    match (ended, drained) {
        (Some(failure), _) => Err(failure),
        (None, Err(failure)) => Err(failure),
        (None, Ok(())) => {
            tracing::info!("muster-worker has stopped");
            Ok(())
        }
    }
}

/// Applies a batch of events.
async fn apply(store: Store, delivered: Vec<Delivered>) -> Result<(), ApplyError> {
    let events: Vec<Event> = delivered.into_iter().map(|delivered| delivered.event).collect();
    match store.events_apply(events).await {
        Ok(applied) => {
            metrics::applied(applied);
            Ok(())
        }
        Err(error) if error.is_transient() => Err(ApplyError::Unavailable(error.to_string())),
        Err(error) => Err(ApplyError::Failed(error.to_string())),
    }
}

async fn prune_applied(store: Store, remember: Duration) {
    for _ in 0..PRUNE_ROUNDS {
        match store.applied_events_prune(remember).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = %error, "old events' ids were not forgotten this time");
                return;
            }
        }
    }
}

struct Watch {
    store: Store,
    connection: Connection,
    consumer: Consumer,
    materials: [(&'static str, Option<Arc<Material>>); 2],
    readiness: Readiness,
    remember: Duration,
}

impl Watch {
    /// Keeps readiness and gauges current, and answers when going on makes no sense.
    async fn run(self, reading: &mut Reading) -> Failure {
        let mut state = self.connection.state();
        let mut look = interval(LOOK);
        let mut lag = interval(LAG);
        let mut prune = interval(PRUNE);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        lag.set_missed_tick_behavior(MissedTickBehavior::Delay);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = reading.ended() => {
                    self.readiness.set(Part::Consumer, false);
                    return Failure::Consumer(ended);
                }
                changed = state.changed() => {
                    let now = *state.borrow_and_update();
                    self.readiness.set(Part::Nats, now == LinkState::Connected);
                    match now {
                        LinkState::Failed(failure) => return Failure::Link(failure),
                        _ if changed.is_err() => return Failure::Link(LinkFailure::Unreachable),
                        _ => {}
                    }
                }
                _ = look.tick() => {
                    let answers = timeout(PING, self.store.ping()).await.is_ok_and(|answer| answer.is_ok());
                    self.readiness.set(Part::Postgres, answers);
                    metrics::pool(self.store.pool_status());
                    metrics::link(self.connection.counts());
                    self.certificates();
                }
                _ = lag.tick() => self.lag().await,
                _ = prune.tick() => {
                    tokio::spawn(prune_applied(self.store.clone(), self.remember));
                }
            }
        }
    }

    async fn lag(&self) {
        match self.consumer.lag().await {
            Ok(lag) => metrics::lag(&lag),
            Err(ConsumerError::Lag(error)) => {
                tracing::debug!(error = %error, "the lag of events is not known")
            }
            // That the stream is gone is found by the reading itself, which ends by it.
            Err(error) => tracing::debug!(error = %error, "the lag of events is not known"),
        }
    }

    fn certificates(&self) {
        for (place, material) in &self.materials {
            let Some(material) = material else { continue };
            let (own, authority) = match *place {
                "nats" => ("nats_own", "nats_authority"),
                _ => ("postgres_own", "postgres_authority"),
            };
            metrics::certificate(own, &material.own());
            metrics::certificate(authority, &material.authorities());
        }
    }
}
