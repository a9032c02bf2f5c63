//! Real servers for one run: a private PostgreSQL and a private nats-server, both with TLS, on free ports.
//!
//! Everything lies in one [`RunDirectory`], and goes with it: processes and files, whether the run ends well, fails,
//! panics or is killed.

mod certificates;
mod find;
mod nats;
mod postgres;
mod process;
mod prometheus;
mod run_directory;

use std::sync::Arc;

use anyhow::{Result, bail};
use muster_domain::{Environment, TlsPolicy};
use muster_messaging::connection::{NatsConfig, Transport};
use muster_messaging::tls::material::{Material, MinimumVersion};
use muster_messaging::tls::server::Servers;

pub use crate::tool::{WrongDigest, cache, fetched, packaged};
pub use certificates::{Authority, Identity, current};
pub use find::{Server, nats_server, postgres_server};
pub use nats::{Nats, NatsOptions};
pub use postgres::{Owner, Postgres, PostgresOptions};
pub use process::{Process, free_address, get};
pub use prometheus::Prometheus;
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
    /// Finds or fetches the servers and starts both. With `durable`, PostgreSQL syncs to disk as in production. When one does
    /// not start, the error holds the end of its log.
    pub fn start(durable: bool) -> Result<Self> {
        let (postgres, nats) = (postgres_server()?, nats_server()?);
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let clients = Clients::issue(&authority)?;
        let mut options = PostgresOptions::new(postgres, authority.server("postgres")?);
        options.durable = durable;
        let postgres = Postgres::start(&directory, "postgres", options)?;
        let options = NatsOptions::new(nats, authority.server("nats")?, authority.certificate_file());
        let nats = Nats::start(&directory, "nats", options)?;
        Ok(Self { nats, postgres, clients, authority, directory })
    }

    /// How one of the clients connects, through the same gate as the worker.
    pub fn nats_config(&self, client: &Identity, name: &str) -> Result<NatsConfig> {
        nats_config(&[self.nats.url()], &self.authority, client, name)
    }
}

/// How a client connects to servers that are as infra/nats ships them, through the same gate as the worker.
pub fn nats_config(
    urls: &[String],
    authority: &Authority,
    client: &Identity,
    name: &str,
) -> Result<NatsConfig> {
    let policy = TlsPolicy::new(Environment::Production, false);
    let Servers::Tls(servers) = Servers::parse(urls, policy)? else {
        bail!("the policy let a plaintext server pass");
    };
    let material = Arc::new(Material::load(&authority.files(client), MinimumVersion::Tls13)?);
    let mut config = NatsConfig::new(Transport::Tls { servers, material }, name);
    config.tls_first = true;
    Ok(config)
}
