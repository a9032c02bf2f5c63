//! A private nats-server with certificates made on the spot.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_domain::{TlsPolicy, TlsReason};
use muster_messaging::connection::{Auth, Connection, NatsConfig, Transport};
use muster_messaging::tls::material::{Material, MinimumVersion, TlsFiles};
use muster_messaging::tls::server::Servers;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use time::OffsetDateTime;

pub(crate) const PASSWORD: &str = "s3cret-of-the-sietch";

/// An authority and what it signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "Muster test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes `<name>.crt`, `<name>.key` and `ca.crt`.
    pub(crate) fn sign(&self, directory: &Path, name: &str, host: &str) -> TlsFiles {
        self.sign_for(directory, name, &[host], -60..30)
    }

    /// The same for any hosts, also none, and valid within these days from now, also past or coming ones.
    pub(crate) fn sign_for(
        &self,
        directory: &Path,
        name: &str,
        hosts: &[&str],
        days: Range<i64>,
    ) -> TlsFiles {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.not_before = OffsetDateTime::now_utc() + time::Duration::days(days.start);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::days(days.end);
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsFiles {
            ca: Some(directory.join("ca.crt")),
            certificate: Some(directory.join(format!("{name}.crt"))),
            key: Some(directory.join(format!("{name}.key"))),
        };
        std::fs::write(files.ca.as_ref().unwrap(), &self.pem).unwrap();
        std::fs::write(files.certificate.as_ref().unwrap(), certificate.pem()).unwrap();
        std::fs::write(files.key.as_ref().unwrap(), key.serialize_pem()).unwrap();
        files
    }
}

/// How the server is set up.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) tls: bool,
    pub(crate) host: &'static str,
    pub(crate) user: &'static str,
    pub(crate) max_payload: usize,
    pub(crate) more: &'static str,
    pub(crate) more_tls: &'static str,
    /// Who may log in, in place of `user` with its password.
    pub(crate) login: Option<String>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            tls: true,
            host: "127.0.0.1",
            user: "muster",
            max_payload: 1024 * 1024,
            more: "",
            more_tls: "",
            login: None,
        }
    }
}

/// A running server. Dropped, it is killed, also when its test fails.
pub(crate) struct Broker {
    child: Child,
    pub(crate) directory: TempDir,
    pub(crate) port: u16,
    pub(crate) ws_port: u16,
    pub(crate) authority: Authority,
    pub(crate) client: TlsFiles,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn binary() -> PathBuf {
    std::env::var_os("MUSTER_TEST_NATS_SERVER").map_or_else(|| PathBuf::from("nats-server"), PathBuf::from)
}

/// The version of the server that is tested against, such as `[2, 9, 10]`.
pub(crate) fn version() -> Vec<u32> {
    let output = Command::new(binary()).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().rsplit('v').next().unwrap().split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

impl Broker {
    pub(crate) fn start(setup: &Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let client = authority.sign(directory.path(), "client", "muster-worker");
        authority.sign(directory.path(), "server", setup.host);
        let (child, port, ws_port) = launch(directory.path(), setup, 0, 0);
        Self { child, directory, port, ws_port, authority, client }
    }

    pub(crate) fn plain() -> Self {
        Self::start(&Setup { tls: false, ..Setup::default() })
    }

    /// Kills the server and starts it again on the same ports.
    pub(crate) fn restart(&mut self, setup: &Setup) {
        self.kill();
        (self.child, self.port, self.ws_port) = launch(self.directory.path(), setup, self.port, self.ws_port);
    }

    /// Makes the server read its configuration and certificates again.
    pub(crate) fn reload(&self) {
        let status = Command::new("kill").args(["-HUP", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What a client in production is configured with.
    pub(crate) fn config(&self) -> NatsConfig {
        self.config_of(&format!("tls://127.0.0.1:{}", self.port), &self.client)
    }

    pub(crate) fn config_of(&self, url: &str, files: &TlsFiles) -> NatsConfig {
        let policy = TlsPolicy::Required(TlsReason::Production);
        let Servers::Tls(servers) = Servers::parse([url], policy).unwrap() else { panic!("not all are TLS") };
        let material = Arc::new(Material::load(files, MinimumVersion::Tls13).unwrap());
        let mut config = NatsConfig::new(Transport::Tls { servers, material }, "test");
        config.auth = Auth::UserPassword { user: "muster".to_owned(), password: PASSWORD.into() };
        config
    }

    pub(crate) fn plain_config(&self) -> NatsConfig {
        let policy = TlsPolicy::Optional(muster_domain::Environment::Test);
        let url = format!("127.0.0.1:{}", self.port);
        let Servers::Plaintext(servers) = Servers::parse([url], policy).unwrap() else {
            panic!("all are TLS")
        };
        let mut config = NatsConfig::new(Transport::Plaintext { servers, material: None }, "test");
        config.auth = Auth::UserPassword { user: "muster".to_owned(), password: PASSWORD.into() };
        config
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

fn launch(directory: &Path, setup: &Setup, port: u16, ws_port: u16) -> (Child, u16, u16) {
    let show = |port: u16| if port == 0 { "-1".to_owned() } else { port.to_string() };
    let at = directory.display();
    let tls = if setup.tls {
        format!(
            "tls {{ cert_file: \"{at}/server.crt\", key_file: \"{at}/server.key\", ca_file: \"{at}/ca.crt\", verify: true, timeout: 5 {} }}",
            setup.more_tls
        )
    } else {
        String::new()
    };
    let websocket = if setup.tls {
        format!("tls {{ cert_file: \"{at}/server.crt\", key_file: \"{at}/server.key\" }}")
    } else {
        "no_tls: true".to_owned()
    };
    let text = format!(
        "host: 127.0.0.1\nport: {}\nports_file_dir: \"{at}\"\nmax_payload: {}\n{tls}\n\
         websocket {{ host: 127.0.0.1, port: {}, {websocket} }}\n\
         jetstream {{ store_dir: \"{at}/jetstream\", max_file_store: 4GB }}\n\
         {}\n{}\n",
        show(port),
        setup.max_payload,
        show(ws_port),
        setup.login.clone().unwrap_or_else(|| {
            format!("authorization {{ user: \"{}\", password: \"{PASSWORD}\" }}", setup.user)
        }),
        setup.more,
    );
    let configuration = directory.join("nats.conf");
    std::fs::write(&configuration, text).unwrap();
    let log = std::fs::File::create(directory.join("nats.log")).unwrap();
    let mut child = Command::new(binary())
        .arg("-c")
        .arg(&configuration)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("nats-server does not start, set MUSTER_TEST_NATS_SERVER: {error}"));
    let name = binary().file_name().unwrap().to_string_lossy().into_owned();
    let ports = directory.join(format!("{name}_{}.ports", child.id()));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(text) = std::fs::read_to_string(&ports)
            && let Ok(json) = serde_json::from_str::<serde_json::Value>(&text)
        {
            let port =
                |key: &str| json[key][0].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
            return (child, port("nats"), port("websocket"));
        }
        if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
            let _ = child.kill();
            panic!("nats-server: {}", std::fs::read_to_string(directory.join("nats.log")).unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a condition, and fails loudly when it does not come about.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
