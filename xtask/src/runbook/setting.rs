use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use muster_domain::{Environment, TlsPolicy};
use muster_messaging::connection::{Auth, Connection, NatsConfig, Transport};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_messaging::tls::server::Servers;
use nkeys::KeyPair;
use xtask::services::{
    Authority, Identity, Nats, NatsOptions, NatsUser, Postgres, PostgresOptions, Prometheus,
    PrometheusPrograms, RunDirectory, nats_server, postgres_server,
};
use xtask::worker::free_address;

use crate::{cargo, observability};

/// The chat server of the community that the load keeps.
pub(super) const GUILD: &str = "881207955029110855";

/// What the runbooks' commands stand on: the servers of the demo, and what an operator's shell knows of them. The worker is
/// started by the commands themselves.
pub(super) struct Setting {
    variables: BTreeMap<&'static str, OsString>,
    sibling: (NatsUser, Identity),
    // In the order in which they are stopped.
    prometheus: Prometheus,
    nats: Nats,
    _postgres: Postgres,
    authority: Authority,
    directory: RunDirectory,
}

impl Setting {
    pub(super) fn new(worker: &Path, programs: PrometheusPrograms) -> Result<Self> {
        let (postgres_server, nats_server) = (postgres_server()?, nats_server()?);
        let directory = RunDirectory::create()?;
        let authority = Authority::create(directory.path(), "ca")?;
        let secrets = directory.path().join("secrets");
        fs::create_dir(&secrets)?;
        let postgres_bin = postgres_server.bin.clone();
        let options = PostgresOptions::new(postgres_server, authority.server("postgres")?);
        let postgres = Postgres::start(&directory, "postgres", options)?;

        let users = ["worker", "operator", "sibling"].map(NatsUser::new);
        let users_file = directory.secret_file("nats-users.conf", &users_block(&users))?;
        let mut options = NatsOptions::new(nats_server);
        options.tls = Some(authority.server("nats")?);
        options.client_ca = Some(authority.certificate_file().to_owned());
        options.handshake_first = true;
        options.further = "include \"nats-users.conf\"".to_owned();
        let nats = Nats::start(&directory, "nats", options)?;

        for user in &users {
            directory.secret_file(&format!("secrets/{}-nats-password", user.name), &user.password)?;
        }
        let copied = |identity: &Identity, name: &str| -> Result<()> {
            for (from, end) in [(&identity.certificate_file, "pem"), (&identity.key_file, "key")] {
                directory.secret_file(&format!("secrets/{name}.{end}"), &fs::read_to_string(from)?)?;
            }
            Ok(())
        };
        copied(&authority.client("worker")?, "worker")?;
        copied(&authority.client("operator")?, "operator")?;
        fs::copy(authority.certificate_file(), secrets.join("ca.pem"))?;
        directory.secret_file("ca.key", &authority.key_pem())?;
        for name in ["issued-nkey", "next-nkey"] {
            let pair = KeyPair::new_user();
            directory.secret_file(&format!("{name}.nk"), &pair.seed().context("an NKey without a seed")?)?;
            fs::write(directory.path().join(format!("{name}.pub")), pair.public_key())?;
        }
        directory.secret_file("pgpass", &format!("*:*:*:*:{}\n", postgres.password()))?;

        let (first, second) = (free_address()?, free_address()?);
        let rules = cargo::root().join(observability::RULES);
        let targets = [("worker-0", first), ("worker-1", second)];
        let prometheus = Prometheus::start(&directory, &programs, &targets, &rules)?;

        let at = |name: &str| directory.path().join(name).into_os_string();
        let secret = |name: &str| secrets.join(name).into_os_string();
        let mut path = vec![
            worker.parent().context("the worker's program has no directory")?.to_owned(),
            programs.promtool.parent().context("promtool has no directory")?.to_owned(),
            postgres_bin,
        ];
        path.extend(env::var_os("PATH").iter().flat_map(env::split_paths));
        let variables = BTreeMap::from([
            ("PATH", env::join_paths(path)?),
            ("STATE", directory.path().into()),
            ("SECRETS", secrets.clone().into()),
            ("WORKER", format!("http://{first}").into()),
            ("WORKER_2", format!("http://{second}").into()),
            ("PROMETHEUS", format!("http://{}", prometheus.address()).into()),
            ("GUILD", GUILD.into()),
            ("CA", secret("ca.pem")),
            ("CA_KEY", at("ca.key")),
            ("NATS", format!("localhost:{}", nats.port()).into()),
            ("NATS_USERS", users_file.into()),
            ("NATS_PID", at("nats.pid")),
            ("NATS_TLS", at("nats")),
            ("ISSUED_NKEY", at("issued-nkey")),
            ("NEXT_NKEY", at("next-nkey")),
            ("POSTGRES_DATA", at("postgres")),
            ("PGHOST", "localhost".into()),
            ("PGPORT", postgres.port().to_string().into()),
            ("PGUSER", postgres.user().into()),
            ("PGPASSFILE", at("pgpass")),
            ("PGDATABASE", "postgres".into()),
            ("PGSSLMODE", "verify-full".into()),
            ("PGSSLROOTCERT", secret("ca.pem")),
            ("MUSTER__NATS__URLS", nats.url().into()),
            ("MUSTER__NATS__TLS_FIRST", "true".into()),
            ("MUSTER__NATS__CA_FILE", secret("ca.pem")),
            ("MUSTER__NATS__CERTIFICATE_FILE", secret("worker.pem")),
            ("MUSTER__NATS__KEY_FILE", secret("worker.key")),
            ("MUSTER__NATS__USER", "worker".into()),
            ("MUSTER__NATS__PASSWORD_FILE", secret("worker-nats-password")),
            ("MUSTER__DATABASE__URL_FILE", secret("database-url")),
            ("MUSTER__DATABASE__CA_FILE", secret("ca.pem")),
            ("MUSTER__HTTP__ADDRESS", first.to_string().into()),
        ]);
        let [_, _, sibling] = users;
        let identity = authority.client("sibling")?;
        Ok(Self {
            variables,
            sibling: (sibling, identity),
            prometheus,
            nats,
            _postgres: postgres,
            authority,
            directory,
        })
    }

    pub(super) fn variables(&self) -> &BTreeMap<&'static str, OsString> {
        &self.variables
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn prometheus(&self) -> SocketAddr {
        self.prometheus.address()
    }

    /// How a sibling service connects, whose credentials no runbook changes.
    pub(super) fn sibling(&self) -> Result<NatsConfig> {
        let (user, identity) = &self.sibling;
        let files = TlsFiles {
            ca: Some(self.authority.certificate_file().to_owned()),
            certificate: Some(identity.certificate_file.clone()),
            key: Some(identity.key_file.clone()),
        };
        let policy = TlsPolicy::new(Environment::Production, false);
        let Servers::Tls(servers) = Servers::parse([self.nats.url()], policy)? else {
            bail!("the policy let a plaintext server pass");
        };
        let material = Arc::new(Material::load(&files, MinimumVersion::Tls13)?);
        let mut config = NatsConfig::new(Transport::Tls { servers, material }, "sibling");
        config.tls_first = true;
        config.auth = Auth::UserPassword { user: user.name.clone(), password: user.password.clone().into() };
        Ok(config)
    }
}

/// Opens the sibling's connection.
pub(super) async fn connect(config: NatsConfig) -> Result<Connection> {
    Connection::open(config).await.context("the sibling cannot connect")
}

fn users_block(users: &[NatsUser]) -> String {
    let lines: String = users
        .iter()
        .map(|NatsUser { name, password, .. }| {
            format!("    {{ user: \"{name}\", password: \"{password}\" }}\n")
        })
        .collect();
    format!("authorization {{\n  users: [\n{lines}  ]\n}}\n")
}
