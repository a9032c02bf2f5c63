//! Connections to a private cluster: bare ones, and a store.

use std::sync::Arc;

use anyhow::{Context, Result};
use muster_domain::{Environment, TlsPolicy};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_storage::StoreConfig;
use tokio_postgres::Client;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;
use xtask::services::{Authority, Postgres};

/// The planner's settings that a session of the worker has: a bare statement is measured with the same.
const PLANS: &str = "-c plan_cache_mode=force_generic_plan -c jit=off -c enable_seqscan=off -c enable_bitmapscan=off \
                     -c enable_hashjoin=off -c enable_mergejoin=off";

/// How sessions plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Planner {
    /// As the worker's do: one plan a statement, index by index.
    AsWorker,
    /// As the server does by itself: for loading, counting and checking.
    Free,
}

/// Where a cluster is, and whom its clients trust.
#[derive(Clone)]
pub(super) struct Database {
    host: tokio_postgres::Config,
    url: String,
    trust: Arc<Material>,
}

impl Database {
    /// The database `postgres` of a cluster whose certificate this authority issued.
    ///
    /// # Errors
    /// When the authority's certificate cannot be read.
    pub(super) fn of(postgres: &Postgres, authority: &Authority) -> Result<Self> {
        let files = TlsFiles { ca: Some(authority.certificate_file().to_owned()), ..TlsFiles::default() };
        let mut host = tokio_postgres::Config::new();
        host.host("localhost")
            .port(postgres.port())
            .user(postgres.user())
            .password(postgres.password())
            .dbname("postgres")
            .ssl_mode(SslMode::Require)
            .application_name("bench");
        let trust = Arc::new(Material::load(&files, MinimumVersion::Tls13)?);
        Ok(Self { host, url: postgres.url("postgres"), trust })
    }

    /// A bare connection, over TLS as the worker's.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub(super) async fn connect(&self, planner: Planner) -> Result<Client> {
        let mut host = self.host.clone();
        if planner == Planner::AsWorker {
            host.options(PLANS);
        }
        let tls = MakeRustlsConnect::new(self.trust.client_config().as_ref().clone());
        let (client, connection) = host.connect(tls).await.context("cannot connect to PostgreSQL")?;
        // Its errors are those of the statements that it carries.
        tokio::spawn(connection);
        Ok(client)
    }

    /// A database made anew in the same cluster.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) async fn create(&self, name: &str) -> Result<Client> {
        self.connect(Planner::Free).await?.batch_execute(&format!("CREATE DATABASE {name}")).await?;
        let mut made = self.clone();
        made.host.dbname(name);
        made.connect(Planner::Free).await
    }

    /// What a store needs to connect as the worker does.
    ///
    /// # Errors
    /// When the URL is not fit for production.
    pub(super) fn store(&self) -> Result<StoreConfig> {
        let policy = TlsPolicy::new(Environment::Production, false);
        Ok(StoreConfig::new(&self.url.clone().into(), policy, Some(self.trust.client_config()))?)
    }
}
