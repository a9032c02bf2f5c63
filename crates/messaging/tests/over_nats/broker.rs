//! A private nats-server that is set up as a test needs it, and how its clients are configured.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_domain::{Environment, Leniency, TlsPolicy, Version};
use muster_messaging::connection::{Connection, Credentials, NatsConfig, Transport};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use time::OffsetDateTime;
use xtask::services::{Authority, Nats, NatsOptions, RunDirectory};
use xtask::tool::nats_server;

pub(crate) const PASSWORD: &str = "s3cret-of-the-sietch";

/// Issues a certificate for any hosts, also none, valid within these days from now, also past or coming ones.
pub(crate) fn sign(authority: &Authority, name: &str, hosts: &[&str], days: Range<i64>) -> TlsFiles {
    let day = |days| OffsetDateTime::now_utc() + time::Duration::days(days);
    authority.files(&authority.issue(name, hosts, day(days.start)..day(days.end)).unwrap())
}

/// An authority that the server does not know; its files lie in a directory of their own.
pub(crate) fn stranger(directory: &RunDirectory) -> Authority {
    let elsewhere = directory.path().join("stranger");
    std::fs::create_dir(&elsewhere).unwrap();
    Authority::create(&elsewhere, "ca").unwrap()
}

/// How the server is set up.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) tls: bool,
    pub(crate) user: &'static str,
    pub(crate) max_payload: usize,
    pub(crate) more_tls: &'static str,
    /// Who may log in, in place of `user` with its password.
    pub(crate) login: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { tls: true, user: "muster", max_payload: 1024 * 1024, more_tls: "", login: None }
    }
}

impl Setup {
    /// The server's whole configuration.
    fn configuration(&self) -> String {
        let identity = "cert_file: $NATS_TLS_CERTIFICATE, key_file: $NATS_TLS_KEY";
        let (tls, websocket) = if self.tls {
            let verified = format!("ca_file: $NATS_TLS_CA, verify: true, timeout: 5 {}", self.more_tls);
            (format!("tls {{ {identity}, {verified} }}"), format!("tls {{ {identity} }}"))
        } else {
            (String::new(), "no_tls: true".to_owned())
        };
        let login = self.login.clone().unwrap_or_else(|| {
            format!("authorization {{ user: \"{}\", password: \"{PASSWORD}\" }}", self.user)
        });
        let max_payload = self.max_payload;
        format!(
            "listen: $NATS_LISTEN\nmax_payload: {max_payload}\n{tls}\n\
             websocket {{ listen: \"127.0.0.1:-1\", {websocket} }}\n\
             jetstream {{ store_dir: $NATS_STORE, max_file_store: 4GB }}\n{login}\n"
        )
    }
}

/// A running server. Dropped, it is stopped, also when its test fails.
pub(crate) struct Broker {
    nats: Nats,
    pub(crate) port: u16,
    pub(crate) ws_port: u16,
    pub(crate) client: TlsFiles,
    pub(crate) authority: Authority,
    pub(crate) directory: RunDirectory,
}

/// The version of the server that is tested against.
pub(crate) fn version() -> Version {
    nats_server().unwrap().version
}

impl Broker {
    pub(crate) fn start(setup: &Setup) -> Self {
        let directory = RunDirectory::create().unwrap();
        let authority = Authority::create(directory.path(), "ca").unwrap();
        let client = authority.files(&authority.client("muster-worker").unwrap());
        let server = authority.issue("server", &["127.0.0.1"], xtask::services::current()).unwrap();
        let mut options = NatsOptions::new(nats_server().unwrap(), server, authority.certificate_file());
        options.node = setup.configuration();
        let nats = Nats::start(&directory, "nats", options).unwrap();
        let (port, ws_port) = (nats.port, websocket_port(&directory.path().join("nats")));
        Self { nats, port, ws_port, client, authority, directory }
    }

    pub(crate) fn plain() -> Self {
        Self::start(&Setup { tls: false, ..Setup::default() })
    }

    /// Kills the server, if it runs, and starts it again on the same port for clients.
    pub(crate) fn restart(&mut self, setup: &Setup) {
        self.kill();
        self.nats.options.node = setup.configuration();
        self.nats.restart().unwrap();
    }

    /// Makes the server read its configuration and certificates again.
    pub(crate) fn reload(&self) {
        self.nats.reload().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.nats.kill().unwrap();
    }

    /// Has the server stand still, with its connections open, or go on.
    pub(crate) fn stand_still(&self, still: bool) {
        let (signal, id) = (if still { "-STOP" } else { "-CONT" }, self.nats.id().unwrap().to_string());
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// What a client in production is configured with.
    pub(crate) fn config(&self) -> NatsConfig {
        self.config_of(&format!("tls://127.0.0.1:{}", self.port), &self.client)
    }

    pub(crate) fn config_of(&self, url: &str, files: &TlsFiles) -> NatsConfig {
        NatsConfig { credentials: password(), ..NatsConfig::production([url], files, "test").unwrap() }
    }

    pub(crate) fn plain_config(&self) -> NatsConfig {
        let policy = TlsPolicy::Optional(Leniency::Test);
        let url = format!("127.0.0.1:{}", self.port);
        let transport = Transport::new([url], policy, &TlsFiles::default(), MinimumVersion::Tls13).unwrap();
        assert!(!transport.is_tls());
        NatsConfig { credentials: password(), ..NatsConfig::new(transport, "test") }
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(self.plain_config()).await.unwrap()
    }

    /// The library's own client, to see what really is on the wire.
    pub(crate) async fn raw(&self) -> async_nats::Client {
        let options =
            async_nats::ConnectOptions::with_user_and_password("muster".to_owned(), PASSWORD.to_owned());
        options.connect(format!("nats://127.0.0.1:{}", self.port)).await.unwrap()
    }
}

/// What the server's user logs in with.
pub(crate) fn password() -> Credentials {
    Credentials::UserPassword { user: "muster".to_owned(), password: PASSWORD.into() }
}

/// A transport in production that speaks TLS 1.2, too.
pub(crate) fn since_tls_1_2(url: &str, files: &TlsFiles) -> Transport {
    let policy = TlsPolicy::new(Environment::Production, false);
    Transport::new([url], policy, files, MinimumVersion::Tls12).unwrap()
}

/// Whom a client trusts, and whom it met.
pub(crate) fn material(config: &NatsConfig) -> Arc<Material> {
    Arc::clone(config.transport.material().unwrap())
}

/// The port for websockets, by the file that the server wrote beside its streams.
fn websocket_port(store: &Path) -> u16 {
    let files = std::fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path());
    let file = files.into_iter().find(|path| path.extension().is_some_and(|it| it == "ports")).unwrap();
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    ports["websocket"][0].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

/// Waits for a condition, and fails loudly when it does not come about.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
