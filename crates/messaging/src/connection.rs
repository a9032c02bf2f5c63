//! A connection to NATS that has passed the gate, and how it fares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{
    AuthError, Client, ClientError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError,
};
use muster_domain::{Environment, Floor, TlsPolicy, Version};
use nkeys::{KeyPair, KeyPairType};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::tls::material::{Material, MaterialError, MinimumVersion, TlsFiles, Witness};
use crate::tls::server::{PlaintextServers, ServerUrl, Servers, ServersError, TlsServers};

/// Which versions of nats-server Muster works with.
pub const SERVER_FLOOR: Floor = Floor {
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

/// Whom to connect to, and by what right. The plaintext arm needs [`PlaintextServers`], which exist only where the policy
/// allows them.
#[derive(Debug, Clone)]
pub enum Transport {
    /// TLS to every server, always.
    Tls {
        /// The servers.
        servers: TlsServers,
        /// Whom to trust, and who to be.
        material: Arc<Material>,
    },
    /// As each server's URL says.
    Plaintext {
        /// The servers.
        servers: PlaintextServers,
        /// Whom to trust and who to be, with those of them that speak TLS; `None` trusts the system's authorities.
        material: Option<Arc<Material>>,
    },
}

impl Transport {
    /// The servers.
    #[must_use]
    pub fn servers(&self) -> &[ServerUrl] {
        match self {
            Self::Tls { servers, .. } => servers.as_slice(),
            Self::Plaintext { servers, .. } => servers.as_slice(),
        }
    }

    /// A transport to each of the servers alone, to see how every one of them fares.
    #[must_use]
    pub fn each(&self) -> Vec<(ServerUrl, Self)> {
        let alone = |url: &ServerUrl| match self {
            Self::Tls { servers, material } => {
                Self::Tls { servers: servers.only(url), material: Arc::clone(material) }
            }
            Self::Plaintext { servers, material } => {
                Self::Plaintext { servers: servers.only(url), material: material.clone() }
            }
        };
        self.servers().iter().map(|url| (url.clone(), alone(url))).collect()
    }
}

/// How to say who is connecting.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Not at all, or by the client certificate alone.
    #[default]
    None,
    /// By name and password.
    UserPassword {
        /// The name.
        user: String,
        /// The password.
        password: SecretString,
    },
    /// By a token.
    Token(SecretString),
    /// By an NKey, given by its seed (`SU…`).
    NKey(SecretString),
    /// By a JSON web token and an NKey, given as the contents of a credentials file.
    Credentials(SecretString),
}

impl Auth {
    /// Whether it can be said at all: a seed or a credentials file is what it must be.
    ///
    /// # Errors
    /// [`ConnectionError::Seed`] or [`ConnectionError::Credentials`].
    pub fn check(&self) -> Result<(), ConnectionError> {
        Credentials::new(self).map(drop)
    }
}

/// What a connection needs to know.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// Whom to connect to.
    pub transport: Transport,
    /// How to say who is connecting.
    pub auth: Auth,
    /// The name that the server's monitoring shows.
    pub name: String,
    /// Whether TLS begins before the server says anything, which it must be configured for (`handshake_first: true`).
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
    /// ```no_run
    /// use muster_messaging::connection::NatsConfig;
    /// use muster_messaging::tls::material::TlsFiles;
    ///
    /// let files = TlsFiles { ca: Some("/etc/muster/ca.pem".into()), ..TlsFiles::default() };
    /// let config = NatsConfig::production(["tls://nats.example:4222"], &files, "my-service")?;
    /// # drop(config);
    /// # Ok::<(), muster_messaging::connection::ConnectionError>(())
    /// ```
    ///
    /// # Errors
    /// [`ConnectionError::Servers`] when a URL is not TLS, [`ConnectionError::Material`] when a file is not in order.
    pub fn production<T: AsRef<str>>(
        urls: impl IntoIterator<Item = T>,
        files: &TlsFiles,
        name: impl Into<String>,
    ) -> Result<Self, ConnectionError> {
        let policy = TlsPolicy::new(Environment::Production, false);
        let material = Arc::new(Material::load(files, MinimumVersion::Tls13)?);
        let transport = match Servers::parse(urls, policy)? {
            Servers::Tls(servers) => Transport::Tls { servers, material },
            Servers::Plaintext(servers) => Transport::Plaintext { servers, material: Some(material) },
        };
        Ok(Self::new(transport, name))
    }

    /// The defaults: 5 s for an attempt, 5 s for a request, a ping every 5 s, given up after 5 minutes or 5 refusals.
    #[must_use]
    pub fn new(transport: Transport, name: impl Into<String>) -> Self {
        Self {
            transport,
            auth: Auth::None,
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

/// Whether there is a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// There is.
    Connected,
    /// There is none at the moment; it is being restored.
    Disconnected {
        /// Since when.
        since: Instant,
    },
    /// It was closed on purpose.
    Closed,
    /// It is not restored any more: the process should end, and be started anew with what it lacks.
    Failed(LinkFailure),
}

/// Why a link is not restored any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkFailure {
    /// The servers refused the credentials again and again.
    #[error(
        "the NATS servers refuse the credentials: check that the user exists and that its secret is current"
    )]
    Refused,
    /// No server was reached for too long.
    #[error("no NATS server was reached for too long: check the servers, the network and the certificates")]
    Unreachable,
    /// A server asked for credentials without having proved by TLS who it is, where TLS is required.
    #[error(
        "a NATS server did not prove its identity by TLS, which is required: no credentials were sent to it"
    )]
    NotTls,
}

/// What has happened to a link since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounts {
    /// Connections after the first.
    pub reconnects: u64,
    /// Refusals of the credentials.
    pub refusals: u64,
    /// Messages dropped because a subscription was not read fast enough.
    pub slow_consumers: u64,
    /// Servers that announced that they are about to stop.
    pub lame_ducks: u64,
}

#[derive(Debug, Default)]
struct Counters {
    reconnects: AtomicU64,
    refusals: AtomicU64,
    slow_consumers: AtomicU64,
    lame_ducks: AtomicU64,
}

/// A connection to NATS. Clones share it; when the last is dropped it closes.
#[derive(Debug, Clone)]
pub struct Connection(Arc<Link>);

#[derive(Debug)]
struct Link {
    client: Client,
    state: watch::Receiver<LinkState>,
    counters: Arc<Counters>,
    request_timeout: Duration,
    monitor: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // The monitor holds a client of its own, which would keep the connection open.
        self.monitor.abort();
    }
}

impl Connection {
    /// Connects. One round over all servers is made; nothing is retried in the background before the first success, so a
    /// wrong address, authority or password is an error here.
    ///
    /// # Errors
    /// [`ConnectionError`] says what kind of thing went wrong, with its cause.
    pub async fn open(config: NatsConfig) -> Result<Self, ConnectionError> {
        let (events_in, events) = mpsc::channel(64);
        let given_up = Arc::new(AtomicBool::new(false));
        let unproven = Arc::new(AtomicBool::new(false));
        let options = options(&config, events_in, Arc::clone(&given_up), Arc::clone(&unproven))?;
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
        let counters = Arc::new(Counters::default());
        let monitor = Monitor {
            client: client.clone(),
            state: state_in,
            counters: Arc::clone(&counters),
            given_up,
            unproven,
            give_up_after: config.give_up_after,
            max_refusals: config.max_refusals.max(1),
            connections: 0,
            refusals: 0,
        };
        Ok(Self(Arc::new(Link {
            client,
            state,
            counters,
            request_timeout: config.request_timeout,
            monitor: tokio::spawn(monitor.run(events)),
        })))
    }

    /// Whether there is a connection, now and as it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.0.state.clone()
    }

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> LinkCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkCounts {
            reconnects: read(&self.0.counters.reconnects),
            refusals: read(&self.0.counters.refusals),
            slow_consumers: read(&self.0.counters.slow_consumers),
            lame_ducks: read(&self.0.counters.lame_ducks),
        }
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

    /// Drops the connection and makes a new one, with the certificates that were read last. Subscriptions go on.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`] when the connection was closed.
    pub async fn renew(&self) -> Result<(), ConnectionError> {
        self.0.client.force_reconnect().await.map_err(|_| ConnectionError::Closed)
    }

    /// Sends what waits, ends every subscription and closes the connection.
    ///
    /// # Errors
    /// [`ConnectionError::Undrained`] when that takes longer than `deadline`.
    pub async fn drain(&self, deadline: Duration) -> Result<(), ConnectionError> {
        let mut state = self.state();
        let closed = async {
            if *state.borrow() == LinkState::Closed {
                return;
            }
            // Each fails only on a connection that is closed already.
            let _ = self.0.client.flush().await;
            let _ = self.0.client.drain().await;
            let _ = state.wait_for(|state| *state == LinkState::Closed).await;
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

/// The library's options. `unproven` is set when a server was about to be told something without having proved by TLS who
/// it is.
fn options(
    config: &NatsConfig,
    events: mpsc::Sender<Event>,
    given_up: Arc<AtomicBool>,
    unproven: Arc<AtomicBool>,
) -> Result<ConnectOptions, ConnectionError> {
    let (tls, witness) = match &config.transport {
        Transport::Tls { material, .. } => {
            let (tls, witness) = material.witnessed();
            (Some(tls), Some(witness))
        }
        Transport::Plaintext { material, .. } => {
            (material.as_ref().map(|material| material.client_config().as_ref().clone()), None)
        }
    };
    let required = witness.is_some();
    let login =
        Arc::new(Login { credentials: Credentials::new(&config.auth)?, witness: witness.clone(), unproven });
    // The library asks for credentials in each attempt, after the handshake and before it says anything.
    let options = ConnectOptions::with_auth_callback(move |nonce| std::future::ready(login.answer(&nonce)));
    let mut options = options
        .name(&config.name)
        .connection_timeout(config.connect_timeout)
        .request_timeout(Some(config.request_timeout))
        .ping_interval(config.ping_interval)
        .client_capacity(SEND_QUEUE)
        .subscription_capacity(SUBSCRIPTION_QUEUE)
        .require_tls(required)
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
    Ok(options)
}

/// Sends the credentials; where TLS is required, only to a server that has proved its identity.
struct Login {
    credentials: Credentials,
    witness: Option<Witness>,
    unproven: Arc<AtomicBool>,
}

/// The credentials that are sent, with parsed keys.
enum Credentials {
    None,
    UserPassword(String, SecretString),
    Token(SecretString),
    NKey(KeyPair),
    Jwt(String, KeyPair),
}

impl Credentials {
    fn new(auth: &Auth) -> Result<Self, ConnectionError> {
        Ok(match auth {
            Auth::None => Self::None,
            Auth::UserPassword { user, password } => Self::UserPassword(user.clone(), password.clone()),
            Auth::Token(token) => Self::Token(token.clone()),
            // Causes are not kept: they may quote the file.
            Auth::NKey(seed) => {
                Self::NKey(user_key(seed.expose_secret().trim()).ok_or(ConnectionError::Seed)?)
            }
            Auth::Credentials(contents) => {
                let (jwt, seed) =
                    credentials(contents.expose_secret()).ok_or(ConnectionError::Credentials)?;
                let key = user_key(seed).ok_or(ConnectionError::Credentials)?;
                Self::Jwt(jwt.to_owned(), key)
            }
        })
    }
}

impl Login {
    /// The credentials for a server that sent `nonce` to be signed.
    fn answer(&self, nonce: &[u8]) -> Result<async_nats::Auth, AuthError> {
        if self.witness.as_ref().is_some_and(|witness| !witness.has_proof()) {
            self.unproven.store(true, Ordering::Release);
            return Err(AuthError::new(LinkFailure::NotTls));
        }
        let sign = |key: &KeyPair| key.sign(nonce).map_err(|_| AuthError::new("the NKey cannot sign"));
        let mut auth = async_nats::Auth::new();
        match &self.credentials {
            Credentials::None => {}
            Credentials::UserPassword(user, password) => {
                auth.username = Some(user.clone());
                auth.password = Some(password.expose_secret().to_owned());
            }
            Credentials::Token(token) => auth.token = Some(token.expose_secret().to_owned()),
            Credentials::NKey(key) => {
                auth.nkey = Some(key.public_key());
                auth.signature = Some(sign(key)?);
            }
            Credentials::Jwt(jwt, key) => {
                auth.jwt = Some(jwt.clone());
                auth.signature = Some(sign(key)?);
            }
        }
        Ok(auth)
    }
}

/// The key of a user's seed; that of an account or an operator is none.
fn user_key(seed: &str) -> Option<KeyPair> {
    KeyPair::from_seed(seed).ok().filter(|key| key.key_pair_type() == KeyPairType::User)
}

/// The JWT and the NKey seed of a credentials file: its two lines that stand between lines of dashes. A file with more, such
/// as two joined ones, is none.
fn credentials(contents: &str) -> Option<(&str, &str)> {
    let edge = |line: &str| line.starts_with("---");
    let mut lines = contents.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut value = || {
        let begun = lines.by_ref().any(edge);
        let value = lines.next().filter(|line| begun && !edge(line))?;
        lines.next().filter(|line| edge(line)).map(|_| value)
    };
    let (jwt, seed) = (value()?, value()?);
    let is_jwt = |text: &str| {
        let of_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        text.split('.').count() == 3
            && text.split('.').all(|part| !part.is_empty() && part.chars().all(of_part))
    };
    (is_jwt(jwt) && !lines.any(edge)).then_some((jwt, seed))
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

/// Turns the library's events into a state and counts, and bounds what it would repeat for ever.
struct Monitor {
    client: Client,
    state: watch::Sender<LinkState>,
    counters: Arc<Counters>,
    given_up: Arc<AtomicBool>,
    unproven: Arc<AtomicBool>,
    give_up_after: Duration,
    max_refusals: u32,
    connections: u64,
    refusals: u32,
}

impl Monitor {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        loop {
            let broken_since = match *self.state.borrow() {
                LinkState::Disconnected { since } => Some(since),
                _ => None,
            };
            let given_up = async {
                match broken_since {
                    Some(since) => tokio::time::sleep_until(since + self.give_up_after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle_event(event).await,
                    None => return,
                },
                () = given_up => self.fail(LinkFailure::Unreachable),
            }
        }
    }

    async fn handle_event(&mut self, event: Event) {
        let failed = matches!(*self.state.borrow(), LinkState::Failed(_));
        match event {
            Event::Connected => {
                self.connections = self.connections.saturating_add(1);
                if self.connections > 1 {
                    self.counters.reconnects.fetch_add(1, Ordering::Relaxed);
                }
                self.refusals = 0;
                if !failed {
                    self.state.send_replace(LinkState::Connected);
                }
            }
            Event::Disconnected if !failed => {
                self.state.send_replace(LinkState::Disconnected { since: Instant::now() });
            }
            Event::Closed if !failed => {
                self.state.send_replace(LinkState::Closed);
            }
            Event::LameDuckMode => {
                self.counters.lame_ducks.fetch_add(1, Ordering::Relaxed);
                // Fails only on a connection that is closed.
                let _ = self.client.force_reconnect().await;
            }
            Event::SlowConsumer(_) | Event::ServerError(ServerError::SlowConsumer(_)) => {
                self.counters.slow_consumers.fetch_add(1, Ordering::Relaxed);
            }
            Event::ServerError(ServerError::AuthorizationViolation) => self.refused(),
            Event::ClientError(ClientError::Other(text)) if is_refusal(&text) => self.refused(),
            _ => {}
        }
    }

    fn refused(&mut self) {
        if self.unproven.load(Ordering::Acquire) {
            return self.fail(LinkFailure::NotTls);
        }
        self.counters.refusals.fetch_add(1, Ordering::Relaxed);
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals >= self.max_refusals {
            self.fail(LinkFailure::Refused);
        }
    }

    fn fail(&self, why: LinkFailure) {
        self.given_up.store(true, Ordering::Release);
        self.state.send_if_modified(|state| match state {
            LinkState::Closed | LinkState::Failed(_) => false,
            _ => {
                tracing::error!(error = %why, "the connection to NATS failed permanently");
                *state = LinkState::Failed(why);
                true
            }
        });
    }
}

/// The library tells why an attempt to reconnect failed only by the text of its kind.
fn is_refusal(text: &str) -> bool {
    [ConnectErrorKind::AuthorizationViolation, ConnectErrorKind::Authentication]
        .iter()
        .any(|kind| kind.to_string() == text)
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The list of servers is refused.
    #[error(transparent)]
    Servers(#[from] ServersError),
    /// The certificates are refused.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// A server's name or certificate was not what it must be, or it does not speak TLS.
    #[error(
        "no NATS server proved its identity by TLS: check the CA, the server's name and the dates of its certificate"
    )]
    Tls(#[source] async_nats::ConnectError),
    /// The credentials were refused.
    #[error(
        "the NATS server refuses the credentials: check that the user exists and that its secret is current"
    )]
    Refused(#[source] async_nats::ConnectError),
    /// No server could be reached.
    #[error("no NATS server could be reached: check that it runs and that its address is right")]
    Unreachable(#[source] async_nats::ConnectError),
    /// It took too long.
    #[error(
        "no NATS server answered within {0:?}: check that it runs and that no firewall drops its packets"
    )]
    TimedOut(Duration),
    /// The NKey's file is not one.
    #[error("the NKey file does not contain a user's seed (SU...): create it again with `nk -gen user`")]
    Seed,
    /// The credentials file is not one.
    #[error("the NATS credentials file does not contain a JWT and an NKey seed: create it again with `nsc`")]
    Credentials,
    /// It came about and must not be used.
    #[error(transparent)]
    Failed(LinkFailure),
    /// It was closed.
    #[error("the connection to NATS is closed")]
    Closed,
    /// It did not close in time.
    #[error("the connection to NATS did not drain within {0:?}: messages not sent by then are lost")]
    Undrained(Duration),
}

impl ConnectionError {
    fn from_connect(error: async_nats::ConnectError) -> Self {
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                Self::Refused(error)
            }
            ConnectErrorKind::Tls => Self::Tls(error),
            _ if is_from_tls(&error) => Self::Tls(error),
            _ => Self::Unreachable(error),
        }
    }
}

fn is_from_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let within = |error: &(dyn std::error::Error + 'static)| {
        error.is::<rustls::Error>()
            || error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .is_some_and(|inner| inner.is::<rustls::Error>() || is_from_tls(inner))
    };
    std::iter::successors(Some(error), |error| error.source()).any(within)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::tls::material::TlsVersion;

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
        config.auth = Auth::UserPassword { user: "user".to_owned(), password: "s3cret".into() };
        config.connect_timeout = Duration::from_millis(500);
        let (events, _) = mpsc::channel(64);
        let unproven = Arc::new(AtomicBool::new(false));
        (options(&config, events, Arc::default(), Arc::clone(&unproven)).unwrap(), unproven)
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
    fn a_credentials_file_is_read_as_nsc_writes_it() {
        let seed = KeyPair::new_user().seed().unwrap();
        let file = format!(
            "-----BEGIN NATS USER JWT-----\r\nab.c-d.e_f\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEYs are sensitive and should be treated as secrets.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n"
        );
        assert_eq!(credentials(&file), Some(("ab.c-d.e_f", seed.as_str())));
        let twice = file.repeat(2);
        let (cut, _) = file.split_once("------END USER").unwrap();
        let jwt_cut = file.replace(".e_f", "");
        let seedless = file.replace(&seed, "");
        for broken in [
            "",
            "ab.c-d",
            "---\n---\n---\n---",
            "---\na\n---\n",
            "---\na\nb\n---\n---\nc\n---",
            &twice,
            cut,
            &jwt_cut,
            &seedless,
        ] {
            assert_eq!(credentials(broken), None, "{broken}");
        }
        assert!(Auth::Credentials(file.clone().into()).check().is_ok());
        let account = KeyPair::new_account().seed().unwrap();
        assert!(Auth::Credentials(file.replace(&seed, &account).into()).check().is_err());
        assert!(Auth::NKey(account.into()).check().is_err());
        assert!(Auth::NKey(KeyPair::new_user().public_key().into()).check().is_err());
        assert!(Auth::NKey(seed.into()).check().is_ok());
    }

    #[test]
    fn reconnecting_slows_down_to_a_bound() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert!((2..100).all(|n| reconnect_delay(n) <= reconnect_delay(n + 1)));
        assert_eq!(reconnect_delay(usize::MAX), MAX_RECONNECT_DELAY);
    }

    #[test]
    fn no_configuration_shows_a_secret() {
        let secret = || SecretString::from("s3cret");
        for auth in [
            Auth::UserPassword { user: "user".to_owned(), password: secret() },
            Auth::Token(secret()),
            Auth::NKey(secret()),
            Auth::Credentials(secret()),
        ] {
            assert!(!format!("{auth:?}").contains("s3cret"));
        }
    }
}
