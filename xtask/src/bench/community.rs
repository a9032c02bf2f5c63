//! A loaded community with everything that it takes to ask it: its own PostgreSQL, NATS server and worker.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use muster_domain::{CommunityId, GuildId};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_storage::Store;
use uuid::Uuid;
use xtask::services::{
    Authority, Clients, Nats, NatsOptions, NatsUser, Postgres, PostgresOptions, RunDirectory, Services,
    nats_server, postgres_server,
};
use xtask::worker::Configuration;

use super::database::{Database, Planner};
use super::load::Wanted;

/// How the measured PostgreSQL is set, over what every private cluster has. It syncs to disk at each commit.
pub(super) const SETTINGS: [(&str, &str); 8] = [
    ("effective_cache_size", "12GB"),
    ("random_page_cost", "1.1"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "15min"),
    ("maintenance_work_mem", "512MB"),
    ("shared_preload_libraries", "pg_stat_statements"),
    ("pg_stat_statements.track", "none"),
    ("log_min_duration_statement", "1000"),
];
/// The working set of the largest community; a quarter of a machine with 24 GiB, as PostgreSQL's manual advises.
pub(super) const SHARED_BUFFERS: &str = "6GB";

/// One community, and who serves it.
pub(super) struct Community {
    /// How many members it was loaded with.
    pub(super) members: u64,
    /// Its id.
    pub(super) id: CommunityId,
    /// Its chat server.
    pub(super) guild: GuildId,
    /// A small community beside it: its chat server.
    pub(super) small_guild: GuildId,
    /// PostgreSQL and NATS.
    pub(super) services: Services,
    /// Who may do everything there.
    user: NatsUser,
    /// Where PostgreSQL is.
    pub(super) database: Database,
    /// How its worker is configured.
    pub(super) configuration: Configuration,
}

impl Community {
    /// Starts the servers of a community, on a copy of its data.
    ///
    /// # Errors
    /// When the community cannot be loaded or a server not started.
    pub(super) async fn start(wanted: Wanted, worker: PathBuf) -> Result<Self> {
        let cluster = wanted.cluster().await?;
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let clients = Clients::issue(&authority)?;
        let mut options = PostgresOptions::new(postgres_server()?, authority.server("postgres")?);
        options.durable = true;
        options.settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        options.settings.push(("shared_buffers".to_owned(), SHARED_BUFFERS.to_owned()));
        options.copy_of = Some(cluster);
        let postgres = Postgres::start(&directory, "postgres", options)?;
        let mut options =
            NatsOptions::new(nats_server()?, authority.server("nats")?, authority.certificate_file());
        // One user asks, publishes and echoes; and what is measured is the worker, not the disk of the broker.
        let user = NatsUser::new("everybody");
        let password = directory.secret_file("everybody-nats-password", &user.password)?;
        options.log_in(std::slice::from_ref(&user))?;
        options.change("sync_interval: always", "sync_interval: \"2m\"")?;
        let nats = Nats::start(&directory, "nats", options)?;
        let services = Services { nats, postgres, clients, authority, directory };
        let database = Database::of(&services.postgres, &services.authority)?;
        let configuration = Configuration::new(worker, &services)?
            .with("MUSTER__NATS__USER", user.name.clone())
            .with("MUSTER__NATS__PASSWORD_FILE", password.display().to_string())
            // What is measured is the work, not its being refused.
            .with("MUSTER__LIMITS__COMMUNITY_PER_SECOND", "1000000")
            .with("MUSTER__LIMITS__COMMUNITY_BURST", "1000000")
            .with("MUSTER__LOG__FILTER", "warn");
        let found = database.connect(Planner::Free).await?;
        let guilds = found
            .query("SELECT community_id, guild_id FROM communities ORDER BY guild_id LIMIT 2", &[])
            .await
            .context("the loaded communities cannot be read")?;
        let [large, small] = guilds.as_slice() else { anyhow::bail!("a community is missing") };
        Ok(Self {
            members: wanted.members,
            id: CommunityId::new(large.get::<_, Uuid>(0)),
            guild: GuildId::parse(large.get::<_, String>(1))?,
            small_guild: GuildId::parse(small.get::<_, String>(1))?,
            services,
            user,
            database,
            configuration,
        })
    }

    /// A store on its database, with this many connections.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) async fn store(&self, connections: usize) -> Result<Store> {
        Ok(Store::open(self.database.store()?.pool_size(connections)).await?)
    }

    /// A bare NATS connection over TLS, as a client of the worker has it.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(super) async fn nats(&self) -> Result<async_nats::Client> {
        connect(&self.services, &self.services.nats.url(), &self.user).await
    }
}

/// A bare connection over TLS by password.
///
/// # Errors
/// When it cannot be had.
pub(super) async fn connect(services: &Services, url: &str, user: &NatsUser) -> Result<async_nats::Client> {
    let files = TlsFiles {
        ca: Some(services.authority.certificate_file().to_owned()),
        certificate: Some(services.clients.operator.certificate_file.clone()),
        key: Some(services.clients.operator.key_file.clone()),
    };
    let material = Arc::new(Material::load(&files, MinimumVersion::Tls13)?);
    let options = async_nats::ConnectOptions::new().require_tls(true).tls_first();
    options
        .tls_client_config(material.client_config().as_ref().clone())
        .user_and_password(user.name.clone(), user.password.clone())
        .subscription_capacity(65_536)
        .connect(url)
        .await
        .context("cannot connect to NATS")
}
