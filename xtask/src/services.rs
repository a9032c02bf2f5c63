//! Real servers for one run: a private PostgreSQL and a private nats-server, both with TLS, on free ports. All processes and
//! files go with their [`RunDirectory`], whether the run ends well, fails, panics or is killed.

mod certificates;
mod nats;
mod postgres;
mod process;

use anyhow::{Context, Result};
use muster_messaging::connection::NatsConfig;

use crate::tool::postgres_server;

pub use certificates::{Authority, Identity, current};
pub use nats::{Nats, NatsOptions};
pub use postgres::{Postgres, PostgresOptions, give_to_owner, run_as_owner};
pub use process::{Process, Restartable, RunDirectory, free_address, get};

/// PostgreSQL and NATS of one run with the certificates that both know, in the order in which they are stopped.
#[derive(Debug)]
pub struct Services {
    /// The NATS server, as infra/nats ships it: the first node of a cluster.
    pub nats: Nats,
    /// The other nodes.
    pub other_nodes: Vec<Nats>,
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

impl Services {
    /// Starts PostgreSQL and this many nodes of NATS. With `durable`, PostgreSQL syncs to disk as in production.
    pub fn start(nodes: usize, durable: bool) -> Result<Self> {
        Self::start_with(nodes, |postgres, _| {
            postgres.durable = durable;
            Ok(())
        })
    }

    /// Finds or fetches the servers and starts PostgreSQL and this many nodes of NATS, set up as `change` has it. When one
    /// does not start, the error holds the end of its log.
    pub fn start_with(
        nodes: usize,
        change: impl FnOnce(&mut PostgresOptions, &mut [NatsOptions]) -> Result<()>,
    ) -> Result<Self> {
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let client = |user: &str| authority.client(&format!("muster-{user}"));
        let clients = Clients {
            worker: client("worker")?,
            repair: client("repair")?,
            streams: client("streams")?,
            gateway: client("gateway")?,
            operator: client("operator")?,
        };
        let mut postgres = PostgresOptions::new(postgres_server()?, authority.server("postgres")?);
        let mut nodes = NatsOptions::nodes(&authority, nodes)?;
        change(&mut postgres, &mut nodes)?;
        let postgres = Postgres::start(&directory, "postgres", postgres)?;
        let mut nodes = Nats::start_nodes(&directory, nodes)?.into_iter();
        let nats = nodes.next().context("no node of NATS")?;
        Ok(Self { nats, other_nodes: nodes.collect(), postgres, clients, authority, directory })
    }

    /// How one of the clients connects.
    pub fn nats_config(&self, client: &Identity, name: &str) -> Result<NatsConfig> {
        nats_config(&[self.nats.url()], &self.authority, client, name)
    }
}

/// How a client connects to servers that are as infra/nats ships them, through the same gate as the worker.
pub fn nats_config(urls: &[String], ca: &Authority, client: &Identity, name: &str) -> Result<NatsConfig> {
    Ok(NatsConfig { tls_first: true, ..NatsConfig::production(urls, &ca.files(client), name)? })
}
