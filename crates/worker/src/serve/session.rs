//! The connections and tasks of one configuration: database, NATS, consumer and service. A rotation opens a new one beside the old.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use muster_domain::{Event, GuildId};
use muster_messaging::connection::{Connection, ConnectionError};
use muster_messaging::events::consumer::{
    ApplyError, Consumer, ConsumerConfig, ConsumerHandle, Delivered, Unfit,
};
use muster_messaging::events::dead_letter::DeadLetters;
use muster_messaging::events::fault::{Probe, StoreFailure};
use muster_messaging::replicas::{self, Subscription};
use muster_messaging::service::{Service, ServiceConfig, serve as serve_requests};
use muster_messaging::tls::material::Material;
use muster_storage::{Error, FaultOf, Store};
use tokio::time::Instant;
use tracing::Instrument;

use super::outbox::Publishing;
use super::readiness::{Part, Readiness};
use super::standby::Watching;
use crate::answers::Answers;
use crate::connect::{Configured, Server, configure};
use crate::failure::Failure;
use crate::fitness;
use crate::metrics;
use crate::rate_limit::RateLimits;
use crate::settings::Settings;
use crate::traces;

pub(crate) struct Session {
    pub(crate) store: Store,
    pub(crate) connection: Connection,
    pub(crate) consumer: Consumer,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) consuming: ConsumerHandle,
    pub(crate) materials: [(Server, Option<Arc<Material>>); 2],
    publishing: Publishing,
    service: Service,
    // Looks at the standby until it is dropped.
    _watching: Option<Watching>,
    // Hears the other replicas until it is dropped.
    _subscription: Subscription,
}

impl Session {
    /// Reads secrets and certificates, connects, and begins to work. `readiness` follows, part by part, where it is given.
    pub(crate) async fn open(
        settings: &Settings,
        limits: Arc<RateLimits>,
        readiness: Option<&Readiness>,
    ) -> Result<Self, Failure> {
        let ready = |part, ready| {
            if let Some(readiness) = readiness {
                readiness.set(part, ready);
            }
        };
        let configured = configure(settings)?;
        let materials = configured.materials();
        let Configured { nats, database, .. } = configured;
        // Both at once, so that it is known of each whether it is there.
        let (store, connection) =
            tokio::join!(Store::open(database.observe(Arc::new(metrics::query))), Connection::open(nats));
        ready(Part::Postgres, matches!(store, Ok(_) | Err(muster_storage::Error::Outdated(_))));
        ready(Part::Migrations, store.is_ok());
        ready(Part::Nats, connection.is_ok());
        let (store, connection) = match (store, connection) {
            (Ok(store), Ok(connection)) => (store, connection),
            (store, connection) => {
                // What is connected is counted by who looks at it from second to second.
                for (server, material) in
                    materials.iter().filter_map(|(server, it)| Some((*server, it.as_ref()?)))
                {
                    metrics::handshakes(server, material.accepted(), material.refused());
                }
                if let Err(ConnectionError::Refused(_)) = &connection {
                    metrics::refused();
                }
                let missing = [store.err().map(Failure::from), connection.err().map(Failure::from)];
                return Err(Failure::Missing(missing.into_iter().flatten().collect()));
            }
        };
        // A rotation must not refuse settings that were accepted at the start.
        let unfit = match readiness {
            Some(_) => fitness::unfit(settings.environment),
            None => Unfit::Warn,
        };
        let server = store.server().await?;
        fitness::hold(&fitness::POSTGRES, &server.version, unfit)?;
        for why in fitness::losses(&server) {
            tracing::warn!("{why}");
        }
        fitness::hold(&fitness::NATS, &connection.server().0, unfit)?;
        if let Some(why) = fitness::payload(connection.max_payload()) {
            tracing::warn!("{why}");
        }
        let consumer = Consumer::open(
            &connection,
            ConsumerConfig {
                batch: settings.events.batch,
                lanes: settings.events.in_flight,
                max_deliveries: settings.events.max_deliveries,
                max_bytes: settings.events.max_bytes,
                max_clock_skew: settings.events.max_clock_skew,
                remember: settings.events.remember,
                unfit,
                observe: Arc::new(metrics::event),
                ..ConsumerConfig::default()
            },
        )
        .await?;
        store.set_folding(!consumer.may_repeat_forgotten());
        let dead_letters = DeadLetters::open(&connection).await?;
        let (applying, probing) = (store.clone(), store.clone());
        let probe: Probe = Arc::new(move |guild| probe(probing.clone(), guild).boxed());
        let consuming = consumer.start(move |events| apply(applying.clone(), events), probe);
        ready(Part::Consumer, true);
        let clearing = Arc::clone(&limits);
        let subscription =
            replicas::listen(&connection, move |community, caller| clearing.clear(community, caller)).await?;
        let answers = Arc::new(Answers { store: store.clone(), limits, connection: connection.clone() });
        // The other connections are for lanes, and for what asks whether the database is there: a lane that gets none in time takes
        // the database for out of reach. What one community may not have of these is for the other communities.
        let at_once_in_all =
            settings.database.pool_size.saturating_sub(settings.events.in_flight.saturating_add(1)).max(1);
        let of_one = (settings.database.pool_size / 2).min(at_once_in_all.saturating_sub(1));
        let service = serve_requests(
            &connection,
            ServiceConfig {
                max_in_flight: settings.service.max_in_flight,
                at_once: of_one.max(1),
                at_once_in_all,
                deadline: settings.service.deadline,
                observe: Arc::new(metrics::request),
            },
            move |request| {
                let answers = Arc::clone(&answers);
                async move { answers.answer(request).await }
            },
        )
        .await?;
        let watching = Watching::start(&store);
        let publishing = Publishing::start(store.clone(), connection.clone());
        for (server, material) in &materials {
            for unused in material.iter().flat_map(|material| material.unused()) {
                tracing::warn!(certificates = server.as_str(), "{unused}");
            }
        }
        Ok(Self {
            store,
            connection,
            consumer,
            dead_letters,
            consuming,
            materials,
            publishing,
            service,
            _watching: watching,
            _subscription: subscription,
        })
    }

    /// How many requests are being worked on.
    pub(crate) fn in_flight(&self) -> usize {
        self.service.in_flight()
    }

    /// Takes no more work, finishes the work in hand, and closes both connections, all within `deadline`.
    pub(crate) async fn stop(self, deadline: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + deadline;
        let left = || deadline.saturating_duration_since(Instant::now());
        let drained = async {
            let (events, requests) = tokio::join!(self.consuming.stop(left()), self.service.stop(left()));
            events?;
            requests?;
            // The changes of the last of them are published, too. The rest of the time is for the connection's drain.
            self.publishing.stop(left() / 2).await;
            self.connection.drain(left()).await?;
            Ok::<(), Failure>(())
        };
        let drained = drained.await;
        self.store.close();
        drained
    }
}

/// Applies a batch of events.
async fn apply(store: Store, delivered: Vec<Delivered>) -> Result<(), ApplyError> {
    let redelivered = delivered.iter().filter(|delivered| delivered.deliveries > 1).count();
    let span = traces::batch(&delivered);
    let events: Vec<Event> = delivered.into_iter().map(|delivered| delivered.event).collect();
    match store.events_apply(events).instrument(span).await {
        Ok(applied) => {
            metrics::applied(&applied);
            metrics::redelivered(redelivered);
            Ok(())
        }
        Err(error) => {
            let of = error.fault_of();
            let failure = failure(&error);
            Err(match of {
                FaultOf::Server => ApplyError::Unavailable(failure),
                FaultOf::Others => ApplyError::Busy(failure),
                FaultOf::Unknown => ApplyError::Failed(failure),
            })
        }
    }
}

async fn probe(store: Store, guild: Option<GuildId>) -> Result<(), StoreFailure> {
    store.events_probe(guild).await.map_err(|error| failure(&error))
}

fn failure(error: &Error) -> StoreFailure {
    StoreFailure { code: error.sqlstate(), why: error.to_string() }
}
