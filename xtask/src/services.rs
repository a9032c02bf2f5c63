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

use anyhow::Result;

pub use certificates::{Authority, Identity, Issue, Usage};
pub use find::{NatsServer, PgBouncerServer, PostgresServer, nats_server, pgbouncer_server, postgres_server};
pub use install::{WrongDigest, by_wheel, cache};
pub(crate) use install::{run, verify};
pub use nats::{Nats, NatsOptions, NatsUser};
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
    /// The NATS server: TLS with client certificates, users `worker` and `client`, JetStream.
    pub nats: Nats,
    /// The PostgreSQL cluster: TLS only.
    pub postgres: Postgres,
    /// A client certificate of the worker.
    pub worker: Identity,
    /// A client certificate of a client of the worker.
    pub client: Identity,
    /// Who issued all certificates.
    pub authority: Authority,
    /// Where all of it lies.
    pub directory: RunDirectory,
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
        let worker = authority.client("worker")?;
        let client = authority.client("client")?;
        let mut postgres_options = PostgresOptions::new(postgres_server, authority.server("postgres")?);
        postgres_options.durable = durable;
        let postgres = Postgres::start(&directory, "postgres", postgres_options)?;
        let mut nats_options = NatsOptions::new(nats_server);
        nats_options.tls = Some(authority.server("nats")?);
        nats_options.client_ca = Some(authority.certificate_file().to_owned());
        nats_options.users = vec![NatsUser::new("worker"), NatsUser::new("client")];
        let nats = Nats::start(&directory, "nats", nats_options)?;
        Ok(Self { nats, postgres, worker, client, authority, directory })
    }
}
