use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use muster_domain::{Environment, TlsPolicy};
use muster_messaging::connection::{Connection, NatsConfig, Transport};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_messaging::tls::server::Servers;
use nkeys::KeyPair;
use xtask::services::{
    Authority, Clients, Identity, Nats, NatsCluster, NatsOptions, NatsUser, Postgres, PostgresOptions,
    Prometheus, PrometheusPrograms, RunDirectory, nats_server, postgres_server,
};
use xtask::worker::free_address;

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

/// A node's name, by which its certificate goes, too.
fn node(number: usize) -> String {
    format!("nats-{number}")
}

/// Starts NATS as it is shipped: this many nodes, whose certificates go by the names that the manifests dial.
fn start_nats(directory: &RunDirectory, authority: &Authority, nodes: usize) -> Result<Vec<Nats>> {
    let server = nats_server()?;
    let routes = (0..nodes).map(|_| Ok(free_address()?.port())).collect::<Result<Vec<u16>>>()?;
    let start = |(number, &port): (usize, &u16)| {
        let name = node(number);
        let identity = authority.node(&name, &format!("{name}.nats.nats.svc"))?;
        let mut options = NatsOptions::new(server.clone(), identity, authority.certificate_file());
        options.cluster = (nodes > 1).then(|| NatsCluster { port, routes: routes.clone() });
        Nats::start(directory, &name, options)
    };
    routes.iter().enumerate().map(start).collect()
}

impl Setting {
    /// Starts PostgreSQL and this many nodes of NATS, and Prometheus where its programs are given.
    pub(crate) fn new(worker: &Path, nodes: usize, programs: Option<&PrometheusPrograms>) -> Result<Self> {
        let postgres_server = postgres_server()?;
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let secrets = directory.path().join("secrets");
        fs::create_dir(&secrets)?;
        let mut path = vec![
            worker.parent().context("the worker's program has no directory")?.to_owned(),
            postgres_server.bin.clone(),
        ];
        let options = PostgresOptions::new(postgres_server, authority.server("postgres")?);
        let postgres = Postgres::start(&directory, "postgres", options)?;
        let nats = start_nats(&directory, &authority, nodes)?;
        let first_node = nats.first().context("no NATS server")?;
        path.extend(first_node.server().program.parent().map(Path::to_owned));

        let clients = Clients::issue(&authority)?;
        let copied = |identity: &Identity, name: &str| -> Result<()> {
            for (from, end) in [(&identity.certificate_file, "pem"), (&identity.key_file, "key")] {
                directory.secret_file(&format!("secrets/{name}.{end}"), &fs::read_to_string(from)?)?;
            }
            Ok(())
        };
        let Clients { worker: own, repair, streams, gateway, operator } = &clients;
        for (identity, name) in [
            (own, "worker"),
            (repair, "repair"),
            (streams, "streams"),
            (gateway, "gateway"),
            (operator, "operator"),
        ] {
            copied(identity, name)?;
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
            variables.insert("PROMETHEUS", format!("http://{}", started.address()).into());
            prometheus = Some(started);
            let server = with_logins(&directory, &authority)?;
            variables.extend([
                ("LOGINS", OsString::from(format!("localhost:{}", server.port()))),
                ("LOGINS_USERS", server.accounts_file().into()),
                ("LOGINS_PID", at("logins.pid")),
                ("ISSUED_NKEY", at("issued-nkey")),
                ("NEXT_NKEY", at("next-nkey")),
            ]);
            logins = Some(server);
        }
        path.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
        variables.insert("PATH", env::join_paths(path)?);
        Ok(Self {
            variables,
            prometheus,
            nats,
            _logins: logins,
            _postgres: postgres,
            clients,
            authority,
            directory,
        })
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

    /// How a client connects whose certificate no runbook changes.
    fn config(&self, client: &Identity, name: &str) -> Result<NatsConfig> {
        let files = TlsFiles {
            ca: Some(self.authority.certificate_file().to_owned()),
            certificate: Some(client.certificate_file.clone()),
            key: Some(client.key_file.clone()),
        };
        let policy = TlsPolicy::new(Environment::Production, false);
        let Servers::Tls(servers) = Servers::parse(self.nats_urls(), policy)? else {
            bail!("the policy let a plaintext server pass");
        };
        let material = Arc::new(Material::load(&files, MinimumVersion::Tls13)?);
        let mut config = NatsConfig::new(Transport::Tls { servers, material }, name);
        config.tls_first = true;
        Ok(config)
    }

    /// How who asks connects, and how the gateway does.
    pub(crate) fn sibling_and_gateway(&self) -> Result<[NatsConfig; 2]> {
        Ok([self.config(&self.clients.operator, "sibling")?, self.config(&self.clients.gateway, "gateway")?])
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
    options.logins = vec![user];
    Nats::start(directory, "logins", options)
}

/// Opens a connection of the load.
pub(super) async fn connect(config: NatsConfig) -> Result<Connection> {
    Connection::open(config).await.context("the load cannot connect")
}
