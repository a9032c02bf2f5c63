//! A connection to NATS that has passed the gate, and its state.

mod credentials;
mod error;
mod monitor;
mod server;
mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use muster_domain::{Environment, TlsPolicy, Version, VersionFloor};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use self::credentials::Login;
use self::monitor::Monitor;
use crate::log_budget::LogBudget;
use crate::tls::material::{Material, MinimumVersion, TlsFiles};

pub use self::credentials::{Credentials, CredentialsError, UserKey};
pub use self::error::ConnectionError;
pub use self::monitor::{LinkCounts, LinkFailure, LinkState};
pub use self::server::{MAX_SERVERS, ServerUrl, ServersError};
pub use self::transport::{Transport, TransportError};

/// Which versions of nats-server Muster works with.
pub const SERVER_FLOOR: VersionFloor = VersionFloor {
    server: "nats-server",
    least: Version([2, 10, 4]),
    why_least: "it cannot be made to write an event to disk before it acknowledges it, nor to speak only after the TLS handshake",
    advised: Version([2, 12, 6]),
    why_advised: "it has security faults that are published (eleven advisories) and were fixed since",
};
/// The most messages that wait in the client to be sent.
const SEND_QUEUE: usize = 2048;
/// The most messages that wait in one subscription to be read. What comes beyond is dropped and counted, so it is above
/// the largest batch of events and the most requests that are answered at once.
const SUBSCRIPTION_QUEUE: usize = 4096;
/// The longest pause between two attempts to reconnect.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// How long a link that has failed for good waits before it would dial again: its process is to end long before.
const NEVER: Duration = Duration::from_hours(24 * 365);

/// The settings of a connection.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// The servers to connect to.
    pub transport: Transport,
    /// The credentials.
    pub credentials: Credentials,
    /// The name that the server's monitoring shows.
    pub name: String,
    /// Whether TLS begins before the server says anything. The server must be configured for it (`handshake_first: true`).
    pub tls_first: bool,
    /// How long one attempt on one server's address may take.
    pub connect_timeout: Duration,
    /// How long to wait for the answer to a request that sets no time of its own.
    pub request_timeout: Duration,
    /// How often the server is asked whether it is still there; after two unanswered times the link counts as broken.
    pub ping_interval: Duration,
    /// How long the link may be broken before it has failed for good.
    pub give_up_after: Duration,
    /// After how many refusals in a row the link has failed for good.
    pub max_refusals: u32,
}

impl NatsConfig {
    /// The defaults over TLS 1.3 to every one of `urls`, as production wants it.
    ///
    /// # Errors
    /// [`TransportError::Servers`] when a URL is not TLS, [`TransportError::Material`] when a file is not in order.
    pub fn production<T: AsRef<str>>(
        urls: impl IntoIterator<Item = T>,
        files: &TlsFiles,
        name: impl Into<String>,
    ) -> Result<Self, TransportError> {
        let policy = TlsPolicy::new(Environment::Production, false);
        Ok(Self::new(Transport::new(urls, policy, files, MinimumVersion::Tls13)?, name))
    }

    /// The defaults: 5 s for an attempt, 5 s for a request, a ping every 5 s, given up after 5 minutes or 5 refusals.
    #[must_use]
    pub fn new(transport: Transport, name: impl Into<String>) -> Self {
        Self {
            transport,
            credentials: Credentials::None,
            name: name.into(),
            tls_first: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(5),
            give_up_after: Duration::from_mins(5),
            max_refusals: 5,
        }
    }
}

/// A connection to NATS. Clones share it; when the last is dropped it closes.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Link>);

#[derive(Debug)]
struct Link {
    client: Client,
    material: Option<Arc<Material>>,
    state: watch::Receiver<LinkState>,
    counts: watch::Receiver<LinkCounts>,
    request_timeout: Duration,
    monitor: JoinHandle<()>,
    /// The version of the certificates that this connection was last renewed for.
    renewed: AtomicU64,
    given_up: Arc<AtomicBool>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // The monitor holds a client of its own, which would keep the connection open.
        self.monitor.abort();
        // The library looks for nobody's connection while there is none, and nobody bounds its attempts any more.
        self.given_up.store(true, Ordering::Release);
    }
}

impl Connection {
    /// Connects. One round over all servers is made; nothing is retried in the background before the first success, so a
    /// wrong address, authority or password is an error here.
    ///
    /// # Errors
    /// [`ConnectionError`] says what kind of thing went wrong, with its cause.
    pub async fn open(config: NatsConfig) -> Result<Self, ConnectionError> {
        config.transport.warn_of_plaintext();
        let (events_in, events) = mpsc::channel(64);
        let given_up = Arc::new(AtomicBool::new(false));
        let unproven = Arc::new(AtomicBool::new(false));
        let material = config.transport.material().map(Arc::clone);
        let renewed = AtomicU64::new(material.as_ref().map_or(0, |material| material.version()));
        let options = options(&config, events_in, Arc::clone(&given_up), Arc::clone(&unproven));
        let servers: Vec<ServerAddr> = config.transport.servers().iter().map(ServerUrl::address).collect();
        // A name may have several addresses, each with its own time; this bounds them all together.
        let bound = config
            .connect_timeout
            .saturating_mul(u32::try_from(servers.len()).unwrap_or(u32::MAX).saturating_add(1));
        let client = tokio::time::timeout(bound, options.connect(&servers[..]))
            .await
            .map_err(|_| ConnectionError::TimedOut(bound))?
            .map_err(|error| match unproven.load(Ordering::Acquire) {
                true => ConnectionError::Failed(LinkFailure::NotTls),
                false => ConnectionError::from_connect(error),
            })?;
        let (state_in, state) = watch::channel(LinkState::Connected);
        let (counts_in, counts) = watch::channel(LinkCounts::default());
        let monitor = Monitor {
            client: client.clone(),
            state: state_in,
            counts: counts_in,
            given_up: Arc::clone(&given_up),
            unproven,
            give_up_after: config.give_up_after,
            max_refusals: config.max_refusals.max(1),
            connections: 0,
            refusals: 0,
            log: LogBudget::new(monitor::LINES_PER_MINUTE),
        };
        Ok(Self(Arc::new(Link {
            client,
            material,
            state,
            counts,
            request_timeout: config.request_timeout,
            monitor: tokio::spawn(monitor.run(events)),
            renewed,
            given_up,
        })))
    }

    /// Whether there is a connection, now and as it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.0.state.clone()
    }

    /// Counts since it was opened.
    #[must_use]
    pub fn counts(&self) -> LinkCounts {
        *self.0.counts.borrow()
    }

    /// The version and name of the server that is connected to.
    #[must_use]
    pub fn server(&self) -> (String, String) {
        self.0.client.try_server_info().map(|info| (info.version, info.server_name)).unwrap_or_default()
    }

    /// The largest message that the server takes, in bytes.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.0.client.max_payload()
    }

    /// Reads the files of the certificates again. Where they have changed and are in order, new connections use them, and this one is
    /// [renewed](Self::renew). Call it from time to time where certificates are replaced while the process runs: one that has ended
    /// is refused at the next connection. Returns whether they had changed since this connection read them last, whichever of those
    /// that share them reads them first.
    ///
    /// # Errors
    /// [`ConnectionError::Material`] when they are not in order, and what was in use stays in use; [`Self::failure`] when the
    /// link is not restored any more.
    pub async fn reload(&self) -> Result<bool, ConnectionError> {
        if let Some(failure) = self.failure() {
            return Err(failure);
        }
        let Some(material) = &self.0.material else { return Ok(false) };
        let read = Arc::clone(material);
        let read = tokio::task::spawn_blocking(move || read.reload()).await;
        let read = read.map_err(|panic| ConnectionError::Material(panic.into()))?;
        read.map_err(|error| ConnectionError::Material(error.into()))?;
        let version = material.version();
        let changed = self.0.renewed.swap(version, Ordering::AcqRel) != version;
        if changed {
            self.renew().await?;
        }
        Ok(changed)
    }

    /// Why the link is not restored any more, where it is not.
    #[must_use]
    pub fn failure(&self) -> Option<ConnectionError> {
        match *self.0.state.borrow() {
            LinkState::Failed(failure) => Some(ConnectionError::Failed(failure)),
            LinkState::Closed => Some(ConnectionError::Closed),
            LinkState::Connected | LinkState::Disconnected { .. } => None,
        }
    }

    /// Waits until the link is not restored any more.
    pub(crate) async fn ended(&self) -> ConnectionError {
        let mut state = self.state();
        loop {
            if let Some(failure) = self.failure() {
                return failure;
            }
            if state.changed().await.is_err() {
                return ConnectionError::Closed;
            }
        }
    }

    /// Drops the connection and makes a new one, with the certificates that were read last. Subscriptions go on.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`] when the connection was closed.
    pub async fn renew(&self) -> Result<(), ConnectionError> {
        self.0.client.force_reconnect().await.map_err(|_| ConnectionError::Closed)
    }

    /// Sends the messages that wait, ends every subscription and closes the connection.
    ///
    /// # Errors
    /// [`ConnectionError::Undrained`] when that takes longer than `deadline`.
    pub async fn drain(&self, deadline: Duration) -> Result<(), ConnectionError> {
        let sent = async {
            // Each fails only on a connection that is closed already.
            let _ = self.0.client.flush().await;
            let _ = self.0.client.drain().await;
            std::future::pending::<()>().await;
        };
        // By a link that was given up nothing is sent any more.
        let closed = async {
            tokio::select! {
                biased;
                _ = self.ended() => {}
                () = sent => {}
            }
        };
        tokio::time::timeout(deadline, closed).await.map_err(|_| ConnectionError::Undrained(deadline))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.0.client
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.0.request_timeout
    }
}

/// The library's options. `unproven` is set when a server that has not proved its identity by TLS asks for credentials.
fn options(
    config: &NatsConfig,
    events: mpsc::Sender<Event>,
    given_up: Arc<AtomicBool>,
    unproven: Arc<AtomicBool>,
) -> ConnectOptions {
    let (tls, witness) = config.transport.material().map(|material| material.witnessed()).unzip();
    let requires_tls = config.transport.is_tls();
    let login =
        Login { credentials: config.credentials.clone(), requires_tls, witness: witness.clone(), unproven };
    // The library asks for credentials in each attempt, after the handshake and before it says anything.
    let options = ConnectOptions::with_auth_callback(move |nonce| std::future::ready(login.answer(&nonce)));
    let mut options = options
        .name(&config.name)
        .connection_timeout(config.connect_timeout)
        .request_timeout(Some(config.request_timeout))
        .ping_interval(config.ping_interval)
        .client_capacity(SEND_QUEUE)
        .subscription_capacity(SUBSCRIPTION_QUEUE)
        .require_tls(requires_tls)
        // Announced servers come by an INFO that anyone in the path can write, and without a scheme.
        .ignore_discovered_servers()
        // Called once before each attempt on a server.
        .reconnect_delay_callback(move |attempts| {
            if let Some(witness) = &witness {
                witness.reset();
            }
            match given_up.load(Ordering::Acquire) {
                true => NEVER,
                false => reconnect_delay(attempts),
            }
        })
        .event_callback(move |event| {
            let events = events.clone();
            async move {
                // Fails only when the connection was dropped, and nobody looks any more.
                let _ = events.send(event).await;
            }
        });
    if let Some(tls) = tls {
        options = options.tls_client_config(tls);
    }
    if config.tls_first {
        options = options.tls_first();
    }
    options
}

fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    match attempts {
        0 | 1 => Duration::ZERO,
        _ => {
            Duration::from_millis(10).saturating_mul(2_u32.saturating_pow(doublings)).min(MAX_RECONNECT_DELAY)
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls::material::{Material, TlsVersion};

    /// A server without TLS: what it hears of the first client, within a second.
    async fn plaintext_server() -> (String, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let info = r#"{"server_id":"x","version":"2.15.1","max_payload":1048576,"nonce":"abcdefghijk"}"#;
            stream.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
            let mut heard = Vec::new();
            let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut heard)).await;
            heard
        });
        (url, heard)
    }

    /// Whom to trust: somebody.
    fn authority() -> (tempfile::TempDir, TlsFiles) {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem())
            .unwrap();
        (directory, TlsFiles { ca: Some(ca), ..TlsFiles::default() })
    }

    /// The library's options as production has them, and whether a login was refused for want of proof.
    fn production_options(files: &TlsFiles) -> (ConnectOptions, Arc<AtomicBool>) {
        let mut config = NatsConfig::production(["tls://a"], files, "test").unwrap();
        config.credentials = Credentials::UserPassword { user: "user".to_owned(), password: "s3cret".into() };
        config.connect_timeout = Duration::from_millis(500);
        let (events, _) = mpsc::channel(64);
        let unproven = Arc::new(AtomicBool::new(false));
        (options(&config, events, Arc::default(), Arc::clone(&unproven)), unproven)
    }

    /// Every server of a production configuration is `tls://` or `wss://`; this is for the day when another address
    /// reaches the library.
    #[tokio::test]
    async fn an_address_without_a_tls_scheme_is_spoken_to_in_tls_all_the_same() {
        let (url, heard) = plaintext_server().await;
        let (_directory, files) = authority();
        let (options, unproven) = production_options(&files);
        options.connect(url).await.unwrap_err();
        assert_eq!(heard.await.unwrap().first(), Some(&0x16), "a TLS handshake");
        assert!(!unproven.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn a_server_that_proved_nothing_hears_nothing_even_when_the_library_would_speak() {
        let (url, heard) = plaintext_server().await;
        let (_directory, files) = authority();
        let (options, unproven) = production_options(&files);
        options.require_tls(false).connect(url).await.unwrap_err();
        assert_eq!(heard.await.unwrap(), b"");
        assert!(unproven.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn a_proof_is_not_good_for_the_next_server() {
        let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let files = TlsFiles { ca: Some(directory.path().join("ca.pem")), ..TlsFiles::default() };
        std::fs::write(files.ca.as_ref().unwrap(), signed.cert.pem()).unwrap();
        // It proves who it is, and goes away.
        let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![signed.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let first = format!("tls://{}", listener.local_addr().unwrap());
        let proved = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"INFO {\"server_id\":\"x\"}\r\n").await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
            let mut heard = [0; 7];
            acceptor.accept(stream).await.unwrap().read_exact(&mut heard).await.unwrap();
            heard
        });
        let (second, heard) = plaintext_server().await;
        let (options, unproven) = production_options(&files);
        let servers = [first, second].map(|url| url.parse::<ServerAddr>().unwrap());
        options.require_tls(false).retain_servers_order().connect(&servers[..]).await.unwrap_err();
        assert_eq!(&proved.await.unwrap(), b"CONNECT");
        assert_eq!(heard.await.unwrap(), b"");
        assert!(unproven.load(Ordering::Acquire));
    }

    #[test]
    fn a_proof_is_of_one_attempt_and_of_a_version_that_is_not_too_old() {
        let (_directory, files) = authority();
        let material = Material::load(&files, MinimumVersion::Tls13).unwrap();
        let (_, witness) = material.witnessed();
        let login = Login {
            credentials: Credentials::None,
            requires_tls: true,
            witness: Some(witness.clone()),
            unproven: Arc::default(),
        };
        witness.saw(TlsVersion::Tls12);
        assert!(login.answer(b"nonce").is_err());
        witness.saw(TlsVersion::Tls13);
        assert!(login.answer(b"nonce").is_ok());
        witness.reset();
        assert!(login.answer(b"nonce").is_err());
    }

    #[test]
    fn reconnecting_slows_down_to_a_bound() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert!((2..100).all(|n| reconnect_delay(n) <= reconnect_delay(n + 1)));
        assert_eq!(reconnect_delay(usize::MAX), MAX_RECONNECT_DELAY);
    }
}
