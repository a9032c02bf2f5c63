//! The servers, the worker and a client of one test.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use muster_domain::{
    Activity, CommunityId, CommunityName, Conviction, Effect, Event, EventId, EventTime, GuildEffect,
    GuildId, MaxClockSkew, MemberEffect, Nym, TimeBounds, UserId,
};
use muster_messaging::client::{Client, EventPublisher};
use muster_messaging::connection::Connection;
use time::OffsetDateTime;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};
use uuid::Uuid;
use xtask::services::{Identity, Services};
use xtask::worker::{Configuration, Worker};

use crate::cluster::Cluster;

/// How long anything that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Setting {
    pub(crate) configuration: Configuration,
    // Dropped before the servers.
    cluster: Option<Cluster>,
    // Stopped last.
    pub(crate) services: Services,
}

impl Setting {
    /// Fresh servers with a migrated database, which is one on a cluster of Citus where one is named.
    pub(crate) async fn new() -> Result<Self> {
        let mut setting = Self::of_one_server().await?;
        if let Some(cluster) = Cluster::make()? {
            setting.use_cluster(cluster).await?;
        }
        Ok(setting)
    }

    /// Has the worker use an empty database on a cluster, which is migrated.
    pub(crate) async fn use_cluster(&mut self, cluster: Cluster) -> Result<()> {
        let file = self.services.directory.secret_file("worker-database-url", &cluster.url()?)?;
        self.configuration = self
            .configuration
            .with("MUSTER__DATABASE__URL_FILE", file.display().to_string())
            .with("MUSTER__DATABASE__CA_FILE", cluster.ca());
        migrate(&self.configuration).await?;
        self.cluster = Some(cluster);
        Ok(())
    }

    /// Fresh servers with a migrated database, for a test that does something to PostgreSQL itself.
    pub(crate) async fn of_one_server() -> Result<Self> {
        let template = TEMPLATE.get_or_try_init(template).await?.services.postgres.data();
        let start = || {
            Services::start_with(1, |postgres, _| {
                postgres.copy_of = Some(template);
                Ok(())
            })
        };
        let services = tokio::task::spawn_blocking(start).await??;
        let configuration = configuration(&services)?;
        Ok(Self { configuration, cluster: None, services })
    }

    pub(crate) fn serve(&self) -> Result<Worker> {
        self.configuration.serve(&self.services)
    }

    /// The cluster that the worker's database is on, if it is on one.
    pub(crate) const fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// The database's URL with its superuser, for psql.
    pub(crate) fn database(&self) -> Result<String> {
        let (url, ca) = match &self.cluster {
            Some(cluster) => (cluster.url()?, cluster.ca().to_owned()),
            None => {
                let ca = self.services.authority.certificate_file();
                (self.services.postgres.url("postgres"), ca.display().to_string())
            }
        };
        Ok(format!("{url}&sslrootcert={ca}"))
    }

    /// A connection as one of the users of infra/nats.
    pub(crate) async fn connect(&self, client: &Identity) -> Result<Connection> {
        Ok(Connection::open(self.services.nats_config(client, "test")?).await?)
    }

    /// Who looks at the streams and their consumers.
    pub(crate) async fn streams(&self) -> Result<Client> {
        Ok(Client::new(self.connect(&self.services.clients.streams).await?))
    }

    /// Who asks, an operator, and who publishes, the gateway.
    pub(crate) async fn client(&self) -> Result<(Client, EventPublisher)> {
        let operator = self.connect(&self.services.clients.operator).await?;
        let gateway = self.connect(&self.services.clients.gateway).await?;
        Ok((Client::new(operator), EventPublisher::new(&gateway)))
    }
}

/// A stopped cluster with a migrated database. Every setting begins with a copy of it, which takes a fraction of the time.
static TEMPLATE: OnceCell<Setting> = OnceCell::const_new();

async fn template() -> Result<Setting> {
    let mut services = tokio::task::spawn_blocking(|| Services::start(1, false)).await??;
    let configuration = configuration(&services)?;
    migrate(&configuration).await?;
    services.postgres.stop();
    services.nats.stop();
    Ok(Setting { configuration, cluster: None, services })
}

async fn migrate(configuration: &Configuration) -> Result<()> {
    let migrated = configuration.run("migrate").await?;
    ensure!(migrated.status.success(), "migrate failed: {}", String::from_utf8_lossy(&migrated.stderr));
    Ok(())
}

fn configuration(services: &Services) -> Result<Configuration> {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_muster-worker"));
    // The tests ask as fast as they can.
    Ok(Configuration::new(program, services)?
        .with("MUSTER__LIMITS__COMMUNITY_PER_SECOND", "100000")
        .with("MUSTER__LIMITS__COMMUNITY_BURST", "100000"))
}

/// The value of a metric with its labels, as the worker shows it.
pub(crate) fn metric(worker: &Worker, series: &str) -> Option<f64> {
    let (_, text) = worker.get("/metrics").ok()?;
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Tries until it is true.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) -> Result<()> {
    eventually_within(PATIENCE, what, holds).await
}

/// The same for what is known to take longer beside other tests.
pub(crate) async fn eventually_within<F: Future<Output = bool>>(
    patience: Duration,
    what: &str,
    mut holds: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds().await {
        if Instant::now() > deadline {
            bail!("{what} did not happen within {patience:?}");
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The community of a guild, once its events have been applied.
pub(crate) async fn community(client: &Client, guild: &str) -> Result<CommunityId> {
    let guild_id = GuildId::parse(guild)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.find_community(guild_id.clone()).await {
            Ok(found) => return Ok(found.community_id),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the community did not come about");
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Where the events of one guild come from; each is a second later than the one before.
pub(crate) struct Guild {
    id: GuildId,
    at: i64,
}

impl Guild {
    pub(crate) fn new(id: &str) -> Self {
        Self { id: GuildId::parse(id).unwrap(), at: 1_700_000_000_000 }
    }

    fn event(&mut self, effect: Effect) -> Event {
        self.at += 1000;
        let id = EventId::new(Uuid::new_v4());
        let times = TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default());
        Event {
            id,
            at: EventTime::parse(self.at, times).unwrap(),
            guild: self.id.clone(),
            effect,
            traceparent: None,
        }
    }

    /// Goes on from now, the clock of the servers.
    pub(crate) fn is_now(&mut self) -> &mut Self {
        self.at = i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap();
        self
    }

    pub(crate) fn join_guild(&mut self) -> Event {
        self.event(Effect::Guild(GuildEffect::Join { name: CommunityName::parse("Sietch Tabr").ok() }))
    }

    pub(crate) fn member(&mut self, user: &str, effect: MemberEffect) -> Event {
        self.event(Effect::Member { user: UserId::parse(user).unwrap(), effect })
    }

    pub(crate) fn join(&mut self, user: &str) -> Event {
        self.member(user, MemberEffect::Join { username: Nym::parse(user).ok() })
    }

    pub(crate) fn score(&mut self, user: &str, conviction: i64) -> Event {
        let conviction = Some(Conviction::clamp(conviction));
        self.member(user, MemberEffect::ScoreSet { conviction, activity: None })
    }

    pub(crate) fn add(&mut self, user: &str, amount: i64) -> Event {
        self.member(user, MemberEffect::ActivityAdd { amount: Activity::clamp(amount) })
    }
}
