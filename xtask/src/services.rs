//! Real servers for one run: a private PostgreSQL and a private nats-server, both with TLS, on free ports.
//!
//! Everything lies in one [`RunDirectory`], and goes with it: processes and files, whether the run ends well, fails,
//! panics or is killed.

mod certificates;
mod find;
mod install;
mod nats;
mod pgbouncer;
mod postgres;
mod process;
mod prometheus;
mod run_directory;

use std::sync::Arc;

use anyhow::{Result, bail};
use muster_domain::{Environment, TlsPolicy};
use muster_messaging::connection::{NatsConfig, Transport};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_messaging::tls::server::Servers;

pub use certificates::{Authority, Identity, Issue, Usage};
pub use find::{NatsServer, PgBouncerServer, PostgresServer, nats_server, pgbouncer_server, postgres_server};
pub use install::{WrongDigest, by_wheel, cache};
pub(crate) use install::{run, verify};
pub use nats::{Nats, NatsCluster, NatsOptions, NatsUser};
pub use pgbouncer::{PgBouncer, PoolMode};
pub(crate) use postgres::free_port;
pub use postgres::{Postgres, PostgresOptions};
pub use process::Process;
pub use prometheus::{Prometheus, PrometheusPrograms, prometheus_programs};
pub use run_directory::RunDirectory;

/// PostgreSQL and NATS of one run with the certificates that both know.
///
/// The fields are in the order in which they are stopped.
#[derive(Debug)]
pub struct Services {
    /// The NATS server, as infra/nats ships it.
    pub nats: Nats,
    /// The PostgreSQL cluster: TLS only.
    pub postgres: Postgres,
    /// The certificates of the users of infra/nats.
    pub clients: Clients,
    /// Who issued all certificates.
    pub authority: Authority,
    /// Where all of it lies.
    pub directory: RunDirectory,
}

/// The users of infra/nats/accounts.conf, by their certificates.
#[derive(Debug, Clone)]
pub struct Clients {
    /// `muster-worker`.
    pub worker: Identity,
    /// `muster-repair`.
    pub repair: Identity,
    /// `muster-streams`.
    pub streams: Identity,
    /// `muster-gateway`.
    pub gateway: Identity,
    /// `muster-operator`.
    pub operator: Identity,
}

impl Clients {
    /// Issues all of them.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue(authority: &Authority) -> Result<Self> {
        Ok(Self {
            worker: authority.client("muster-worker")?,
            repair: authority.client("muster-repair")?,
            streams: authority.client("muster-streams")?,
            gateway: authority.client("muster-gateway")?,
            operator: authority.client("muster-operator")?,
        })
    }
}

impl Services {
    /// Finds or installs the servers and starts both. With `durable`, PostgreSQL syncs to disk as in production.
    ///
    /// # Errors
    /// When a server can neither be found nor installed, or does not start; the end of its log is part of the error.
    pub fn start(durable: bool) -> Result<Self> {
        let postgres_server = postgres_server()?;
        let nats_server = nats_server()?;
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let clients = Clients::issue(&authority)?;
        let mut postgres_options = PostgresOptions::new(postgres_server, authority.server("postgres")?);
        postgres_options.durable = durable;
        let postgres = Postgres::start(&directory, "postgres", postgres_options)?;
        let nats_options =
            NatsOptions::new(nats_server, authority.server("nats")?, authority.certificate_file());
        let nats = Nats::start(&directory, "nats", nats_options)?;
        Ok(Self { nats, postgres, clients, authority, directory })
    }

    /// How one of the clients connects, through the same gate as the worker.
    ///
    /// # Errors
    /// When its certificate cannot be read.
    pub fn nats_config(&self, client: &Identity, name: &str) -> Result<NatsConfig> {
        let files = TlsFiles {
            ca: Some(self.authority.certificate_file().to_owned()),
            certificate: Some(client.certificate_file.clone()),
            key: Some(client.key_file.clone()),
        };
        let policy = TlsPolicy::new(Environment::Production, false);
        let Servers::Tls(servers) = Servers::parse([self.nats.url()], policy)? else {
            bail!("the policy let a plaintext server pass");
        };
        let material = Arc::new(Material::load(&files, MinimumVersion::Tls13)?);
        let mut config = NatsConfig::new(Transport::Tls { servers, material }, name);
        config.tls_first = self.nats.tls_first();
        Ok(config)
    }
}
