//! A database for each test, made from a template that holds the migrated schema.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_domain::{Environment, TlsPolicy};
use muster_storage::{Distribute, Store, StoreConfig};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use secrecy::SecretString;
use tokio::sync::OnceCell;
use tokio_postgres::Client;
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::cluster;

static TEMPLATE: OnceCell<String> = OnceCell::const_new();

/// A database of one test's own. It is dropped with this value.
pub(crate) struct Database {
    name: String,
}

impl Database {
    /// One with the schema.
    pub(crate) async fn migrated() -> Self {
        let template = TEMPLATE.get_or_init(template).await;
        Self::create(&format!("TEMPLATE {template}")).await
    }

    /// One without.
    pub(crate) async fn empty() -> Self {
        Self::create("").await
    }

    /// One without, on the server itself, also where that is a cluster's coordinator; [`cluster::join`] makes it one.
    pub(crate) async fn apart() -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        cluster::on_each(&format!("CREATE DATABASE {name}")).await;
        Self { name }
    }

    async fn create(options: &str) -> Self {
        let name = format!("test_{}", Uuid::new_v4().simple());
        cluster::on_each(&format!("CREATE DATABASE {name} {options}")).await;
        if options.is_empty() {
            cluster::join(&name).await;
        }
        cluster::allow_triggers(&name).await;
        Self { name }
    }

    pub(crate) fn config(&self) -> StoreConfig {
        config(&url(&self.name), trusting(&ca_file()))
    }

    pub(crate) async fn store(&self) -> Store {
        Store::open(self.config()).await.unwrap()
    }

    /// A connection for plain SQL.
    pub(crate) async fn client(&self) -> Client {
        connect(&self.name).await
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE {} WITH (FORCE)", self.name);
        // A runtime cannot be waited for on one of its own threads.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(cluster::on_each(&drop));
        });
        let dropped = dropping.join();
        assert!(dropped.is_ok() || std::thread::panicking(), "the test's database cannot be dropped");
    }
}

/// The template's name holds that of the schema, so that a server that outlives a run never serves an old one.
async fn template() -> String {
    let mut hasher = DefaultHasher::new();
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<PathBuf> = std::fs::read_dir(migrations)
        .unwrap()
        .map(|directory| directory.unwrap().path().join("up.sql"))
        .filter(|file| file.is_file())
        .collect();
    files.sort();
    for file in files {
        std::fs::read(file).unwrap().hash(&mut hasher);
    }
    let name = format!("template_{:016x}", hasher.finish());
    let server = connect("postgres").await;
    server.batch_execute("SELECT pg_advisory_lock(hashtextextended('test template', 0))").await.unwrap();
    let made =
        server.query_opt("SELECT datistemplate FROM pg_database WHERE datname = $1", &[&name]).await.unwrap();
    if !made.is_some_and(|row| row.get(0)) {
        cluster::on_each(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
        cluster::on_each(&format!("CREATE DATABASE {name}")).await;
        cluster::join(&name).await;
        muster_storage::migrate(&config(&url(&name), trusting(&ca_file())), Distribute::New).await.unwrap();
        cluster::close(&name).await;
        // Marked only now: one that was left half made is made again.
        server.batch_execute(&format!("ALTER DATABASE {name} IS_TEMPLATE true")).await.unwrap();
    }
    name
}

/// `MUSTER_CITUS_URL` and `MUSTER_CITUS_CA_FILE` have every test run on the cluster of Citus that they name, and not on the one server.
fn variable(name: &str) -> String {
    if let Ok(of_cluster) = std::env::var(name.replace("TEST_DATABASE", "CITUS").replace("TEST_", "CITUS_")) {
        return of_cluster;
    }
    std::env::var(name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run these tests with `cargo xtask test`, which starts the servers they need"
        )
    })
}

pub(crate) fn ca_file() -> PathBuf {
    variable("MUSTER_TEST_CA_FILE").into()
}

/// The server's URL with another database, which must stand between the last `/` and the `?`.
pub(crate) fn url(database: &str) -> String {
    let server = variable("MUSTER_TEST_DATABASE_URL");
    let (address, options) = server.split_once('?').unwrap();
    let (address, _) = address.rsplit_once('/').unwrap();
    format!("{address}/{database}?{options}")
}

/// A client that trusts the authorities of a PEM file.
pub(crate) fn trusting(ca: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

pub(crate) fn config(url: &str, tls: ClientConfig) -> StoreConfig {
    let policy = TlsPolicy::new(Environment::Production, false);
    StoreConfig::new(&SecretString::from(url), policy, Some(Arc::new(tls))).unwrap()
}

pub(crate) async fn connect(database: &str) -> Client {
    connect_to(&url(database)).await
}

pub(crate) async fn connect_to(url: &str) -> Client {
    let url = url.replace("sslmode=verify-full", "sslmode=require");
    let tls = MakeRustlsConnect::new(trusting(&ca_file()));
    let (client, connection) = tokio_postgres::connect(&url, tls).await.unwrap();
    // It ends with its client; what goes wrong before that, the client's next call says.
    tokio::spawn(connection);
    client
}
