use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use muster_messaging::connection::NatsConfig;
use nkeys::KeyPair;
use xtask::services::{
    Authority, Clients, Nats, NatsOptions, NatsUser, Postgres, PostgresOptions, Prometheus,
    PrometheusPrograms, RunDirectory, free_address, nats_config, nats_server, postgres_server,
};

use crate::{cargo, observability};

/// The chat server of the community that the load keeps.
pub(super) const GUILD: &str = "881207955029110855";

/// What the runbooks' commands stand on: the servers as they are shipped, and what an operator's shell knows of them. The
/// worker is started by the commands themselves.
pub(crate) struct Setting {
    variables: BTreeMap<&'static str, OsString>,
    // In the order in which they are stopped.
    prometheus: Option<Prometheus>,
    nats: Vec<Nats>,
    _logins: Option<Nats>,
    _postgres: Postgres,
    clients: Clients,
    authority: Authority,
    directory: RunDirectory,
}

impl Setting {
    /// Starts PostgreSQL and this many nodes of NATS, and Prometheus where its programs are given.
    pub(crate) fn new(worker: &Path, nodes: usize, programs: Option<&PrometheusPrograms>) -> Result<Self> {
        let postgres_server = postgres_server()?;
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let mut path = vec![
            worker.parent().context("the worker's program has no directory")?.to_owned(),
            postgres_server.bin.clone(),
        ];
        let options = PostgresOptions::new(postgres_server, authority.server("postgres")?);
        let postgres = Postgres::start(&directory, "postgres", options)?;
        let nats = Nats::start_nodes(&directory, &authority, nodes)?;
        let first_node = nats.first().context("no NATS server")?;
        path.extend(first_node.server().program.parent().map(Path::to_owned));

        let secrets = directory.path().join("secrets");
        fs::create_dir(&secrets)?;
        let clients = Clients::issue(&authority)?;
        for (identity, name) in [
            (&clients.worker, "worker"),
            (&clients.repair, "repair"),
            (&clients.streams, "streams"),
            (&clients.gateway, "gateway"),
            (&clients.operator, "operator"),
        ] {
            fs::copy(&identity.certificate_file, secrets.join(format!("{name}.pem")))?;
            fs::copy(&identity.key_file, secrets.join(format!("{name}.key")))?;
        }
        fs::copy(authority.certificate_file(), secrets.join("ca.pem"))?;
        directory.secret_file("ca.key", &authority.key_pem())?;
        directory.secret_file("pgpass", &format!("*:*:*:*:{}\n", postgres.password()))?;

        let (first, second) = (free_address()?, free_address()?);
        let at = |name: &str| directory.path().join(name).into_os_string();
        let secret = |name: &str| secrets.join(name).into_os_string();
        let urls: Vec<String> = nats.iter().map(Nats::url).collect();
        let mut variables = BTreeMap::from([
            ("STATE", directory.path().into()),
            ("SECRETS", secrets.clone().into()),
            ("WORKER", format!("http://{first}").into()),
            ("WORKER_2", format!("http://{second}").into()),
            ("GUILD", GUILD.into()),
            // Of no release: for the commands that do not fetch the image.
            ("IMAGE", "registry.example/muster/muster-worker".into()),
            ("DIGEST", format!("sha256:{:064x}", uuid::Uuid::new_v4().as_u128()).into()),
            ("CA", secret("ca.pem")),
            ("CA_KEY", at("ca.key")),
            ("NATS", format!("localhost:{}", first_node.port()).into()),
            ("NATS_CONF", first_node.configuration().into()),
            ("NATS_NODES", nodes.to_string().into()),
            ("NATS_PID", at("nats-0.pid")),
            ("POSTGRES_DATA", at("postgres")),
            ("PGHOST", "localhost".into()),
            ("PGPORT", postgres.port().to_string().into()),
            ("PGUSER", postgres.user().into()),
            ("PGPASSFILE", at("pgpass")),
            ("PGDATABASE", "postgres".into()),
            ("PGSSLMODE", "verify-full".into()),
            ("PGSSLROOTCERT", secret("ca.pem")),
            ("MUSTER__NATS__URLS", urls.join(",").into()),
            ("MUSTER__NATS__TLS_FIRST", "true".into()),
            ("MUSTER__NATS__CA_FILE", secret("ca.pem")),
            ("MUSTER__NATS__CERTIFICATE_FILE", secret("worker.pem")),
            ("MUSTER__NATS__KEY_FILE", secret("worker.key")),
            ("MUSTER__DATABASE__URL_FILE", secret("database-url")),
            ("MUSTER__DATABASE__CA_FILE", secret("ca.pem")),
            ("MUSTER__HTTP__ADDRESS", first.to_string().into()),
        ]);
        // What the server's own check of its configuration reads.
        variables.extend(first_node.variables().into_iter().map(|(name, value)| (name, value.into())));
        let (mut prometheus, mut logins) = (None, None);
        if let Some(programs) = programs {
            let rules = cargo::root().join(observability::RULES);
            let targets = [("worker-0", first), ("worker-1", second)];
            let started = Prometheus::start(&directory, programs, &targets, &rules)?;
            path.extend(programs.promtool.parent().map(Path::to_owned));
            let server = with_logins(&directory, &authority)?;
            variables.extend([
                ("PROMETHEUS", format!("http://{}", started.address()).into()),
                ("LOGINS", format!("localhost:{}", server.port()).into()),
                ("LOGINS_USERS", server.accounts_file().into()),
                ("LOGINS_PID", at("logins.pid")),
                ("ISSUED_NKEY", at("issued-nkey")),
                ("NEXT_NKEY", at("next-nkey")),
            ]);
            (prometheus, logins) = (Some(started), Some(server));
        }
        path.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
        variables.insert("PATH", env::join_paths(path)?);
        let (_logins, _postgres) = (logins, postgres);
        Ok(Self { variables, prometheus, nats, _logins, _postgres, clients, authority, directory })
    }

    pub(crate) fn variables(&self) -> &BTreeMap<&'static str, OsString> {
        &self.variables
    }

    pub(crate) fn directory(&self) -> &RunDirectory {
        &self.directory
    }

    /// The URLs of the nodes of NATS.
    pub(crate) fn nats_urls(&self) -> Vec<String> {
        self.nats.iter().map(Nats::url).collect()
    }

    pub(super) fn prometheus(&self) -> Result<SocketAddr> {
        Ok(self.prometheus.as_ref().context("no Prometheus was started")?.address())
    }

    /// How who asks connects, and how the gateway does, by certificates that no runbook changes.
    pub(crate) fn sibling_and_gateway(&self) -> Result<[NatsConfig; 2]> {
        let config = |client, name| nats_config(&self.nats_urls(), &self.authority, client, name);
        Ok([config(&self.clients.operator, "sibling")?, config(&self.clients.gateway, "gateway")?])
    }
}

/// A server that differs from what is shipped in that its users log in by password or NKey, with the files for that.
fn with_logins(directory: &RunDirectory, authority: &Authority) -> Result<Nats> {
    let user = NatsUser::new("worker");
    directory.secret_file("secrets/worker-nats-password", &user.password)?;
    for name in ["issued-nkey", "next-nkey"] {
        let pair = KeyPair::new_user();
        directory.secret_file(&format!("{name}.nk"), &pair.seed().context("an NKey without a seed")?)?;
        fs::write(directory.path().join(format!("{name}.pub")), pair.public_key())?;
    }
    let mut options =
        NatsOptions::new(nats_server()?, authority.server("logins")?, authority.certificate_file());
    options.log_in(&[user])?;
    Nats::start(directory, "logins", options)
}
