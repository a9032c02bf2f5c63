use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nkeys::KeyPair;
use xtask::services::{
    Authority, Clients, Nats, NatsOptions, Postgres, PostgresOptions, Prometheus, RunDirectory, Services,
    free_address, nats_server, postgres_server,
};

use super::Shell;
use crate::demo::community::GUILD;
use crate::{cargo, observability};

/// What an operator's shell knows of the servers.
const PROFILE: &str = "xtask/src/runbook/profile.sh";

/// What the runbooks' commands stand on: the servers as they are shipped. The worker is started by the commands themselves.
pub(crate) struct Setting {
    /// What differs from run to run in the operator's shell.
    variables: BTreeMap<&'static str, OsString>,
    /// The URLs of the nodes of NATS.
    pub(crate) nats_urls: Vec<String>,
    // In the order in which they are stopped.
    pub(super) prometheus: Option<Prometheus>,
    _logins: Nats,
    _other_nodes: Vec<Nats>,
    /// The first node of NATS, and PostgreSQL.
    pub(crate) services: Services,
}

impl Setting {
    /// Starts PostgreSQL and this many nodes of NATS, and Prometheus where its program is given.
    pub(crate) fn new(worker: &Path, nodes: usize, program: Option<&Path>) -> Result<Self> {
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        directory.secret_file("ca.key", &authority.key_pem())?;
        fs::create_dir(directory.path().join("secrets"))?;
        let server = postgres_server()?;
        let postgres_programs = server.bin().to_owned();
        let options = PostgresOptions::new(server, authority.server("postgres")?);
        let postgres = Postgres::start(&directory, "postgres", options)?;
        directory.secret_file("pgpass", &format!("*:*:*:*:{}\n", postgres.options.password))?;
        let mut other_nodes = Nats::start_nodes(&directory, &authority, nodes)?;
        let nats_urls: Vec<String> = other_nodes.iter().map(Nats::url).collect();
        let node = other_nodes.remove(0);
        let logins = with_logins(&directory, &authority)?;

        let (first, second) = (free_address()?, free_address()?);
        let rules = cargo::root().join(observability::RULES);
        let targets = [("worker-0", first), ("worker-1", second)];
        let prometheus = program.map(|program| Prometheus::start(&directory, program, &targets, &rules));
        let prometheus = prometheus.transpose()?;

        let beside =
            [Some(worker), Some(node.options.server.program.as_path()), program].into_iter().flatten();
        let path = env::join_paths(beside.filter_map(Path::parent).chain([postgres_programs.as_path()]))?;
        let mut variables = BTreeMap::from([
            ("BASH_ENV", cargo::root().join(PROFILE).into()),
            ("STATE", directory.path().into()),
            ("PROGRAMS", path),
            ("WORKER", format!("http://{first}").into()),
            ("WORKER_2", format!("http://{second}").into()),
            ("GUILD", GUILD.into()),
            ("NATS_PORT", node.port.to_string().into()),
            ("NATS_URLS", nats_urls.join(",").into()),
            ("NATS_NODES", nodes.to_string().into()),
            ("NATS_CONF", node.configuration().into()),
            ("LOGINS", format!("localhost:{}", logins.port).into()),
            ("LOGINS_USERS", logins.accounts_file().into()),
            ("POSTGRES_PORT", postgres.port.to_string().into()),
            ("POSTGRES_USER", Postgres::USER.into()),
        ]);
        // What the server's own check of its configuration reads.
        variables.extend(node.variables().into_iter().map(|(name, value)| (name, value.into())));
        let address = prometheus.as_ref().map(|started| format!("http://{}", started.address));
        variables.extend(address.map(|address| ("PROMETHEUS", address.into())));
        let clients = Clients::issue(&authority)?;
        let services = Services { nats: node, postgres, clients, authority, directory };
        let (_logins, _other_nodes) = (logins, other_nodes);
        Ok(Self { variables, nats_urls, prometheus, _logins, _other_nodes, services })
    }

    /// An operator's shell.
    pub(crate) fn shell(&self) -> Result<Shell> {
        Shell::start(&self.variables, self.services.directory.path())
    }
}

/// A server that differs from what is shipped in that its users log in by password or NKey, with the files for that.
fn with_logins(directory: &RunDirectory, authority: &Authority) -> Result<Nats> {
    for name in ["issued-nkey", "next-nkey"] {
        let pair = KeyPair::new_user();
        directory.secret_file(&format!("{name}.nk"), &pair.seed().context("an NKey without a seed")?)?;
        fs::write(directory.path().join(format!("{name}.pub")), pair.public_key())?;
    }
    let mut options =
        NatsOptions::new(nats_server()?, authority.server("logins")?, authority.certificate_file());
    directory.secret_file("secrets/worker-nats-password", &options.log_in("worker")?)?;
    Nats::start(directory, "logins", options)
}
