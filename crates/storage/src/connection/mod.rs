//! Connections to PostgreSQL: over verified TLS where the policy requires it, each with the session's bounds set.

mod awaited;
mod hosts;
mod session;
mod url;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::QueueMode;
use diesel::ConnectionError;
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use futures_util::FutureExt;
use muster_domain::TlsPolicy;
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{Client, Connection, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::Error;
use crate::observation::ObserveQuery;
use crate::sql::sqlstate::{CodedPlaintext, CodedTls, SaidProcess};
pub(crate) use awaited::Awaited;
use hosts::Hosts;
use session::{Facts, SessionError, Settings};
use url::{DatabaseUrl, Host, Place, Target};

/// How long each address of each host may take from the first packet to a session that is fit for use, unless the URL
/// says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How to reach PostgreSQL. [`StoreConfig::new`] holds it to the TLS policy, so that one in hand is fit to use.
#[derive(Clone)]
pub struct StoreConfig {
    url: Arc<DatabaseUrl>,
    hosts: Arc<Hosts>,
    settings: Settings,
    tls: Option<Arc<ClientConfig>>,
    pub(crate) pool_size: usize,
    pub(crate) acquire_timeout: Duration,
    pub(crate) query_timeout: Duration,
    pub(crate) observe: ObserveQuery,
    pub(crate) standby: Option<Arc<ReadFrom>>,
}

/// A standby that lists may be read from.
pub(crate) struct ReadFrom {
    pub(crate) config: StoreConfig,
    /// How far it may be behind.
    pub(crate) max_lag: Duration,
}

/// What a host was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundHost {
    /// A standby takes no writes until it is promoted.
    pub standby: bool,
    /// Whether transactions are read-only: on a standby, or by `default_transaction_read_only`.
    pub read_only: bool,
    /// Whether it is one that the URL's `target_session_attrs` wants.
    pub wanted: bool,
}

impl StoreConfig {
    /// Checks a connection URL against the policy.
    ///
    /// Where TLS is required, `tls` verifies the server's certificate and host name, and the URL's `sslmode` is
    /// `verify-full` or absent, which means the same. Where it is optional, an URL without `sslmode=verify-full` is
    /// plaintext.
    ///
    /// # Errors
    /// [`Error::Configuration`] when the URL does not parse, has a parameter that is not honoured, or is weaker than the
    /// policy.
    pub fn new(url: &SecretString, policy: TlsPolicy, tls: Option<Arc<ClientConfig>>) -> Result<Self, Error> {
        let refused = |why: &str| Err(Error::Configuration(why.to_owned()));
        let url = DatabaseUrl::parse(url.expose_secret())?;
        session::may_set(&url.options)?;
        let encrypted = match (policy.is_required(), url.sslmode.as_deref()) {
            (_, Some("verify-full")) | (true, None) => true,
            (false, None | Some("disable")) => false,
            (required, Some(mode)) => {
                // A word that is none of these may be a piece of a password.
                let known =
                    ["disable", "allow", "prefer", "require", "verify-ca"].iter().find(|it| **it == mode);
                let written =
                    known.map_or_else(|| "what sslmode is set to".to_owned(), |it| format!("sslmode={it}"));
                return refused(&match required {
                    true => format!(
                        "{written} is weaker than the TLS policy ({policy}): write sslmode=verify-full"
                    ),
                    false => format!(
                        "{written} promises more than it checks: write sslmode=verify-full or sslmode=disable"
                    ),
                });
            }
        };
        if encrypted && tls.is_none() {
            return refused("sslmode=verify-full needs certificate authorities to verify against");
        }
        if encrypted && url.hosts.iter().any(|host| matches!(host.place, Place::Socket(_))) {
            return refused(
                "a socket of this machine has no TLS: write a host's name, or sslmode=disable where TLS is not required",
            );
        }
        if url.direct_tls && !encrypted {
            return refused("sslnegotiation=direct is TLS: write sslmode=verify-full with it");
        }
        let tls = tls.filter(|_| encrypted).map(|tls| {
            let mut tls = ClientConfig::clone(&tls);
            tls.enable_sni = url.sni;
            // A server takes a handshake without a request before it only with this.
            if url.direct_tls {
                tls.alpn_protocols = vec![b"postgresql".to_vec()];
            }
            Arc::new(tls)
        });
        Ok(Self {
            hosts: Arc::new(Hosts::new(url.hosts.clone(), url.random)),
            settings: Settings::new(write_timeout(QUERY_TIMEOUT), &url.options),
            url: Arc::new(url),
            tls,
            pool_size: 10,
            acquire_timeout: Duration::from_secs(2),
            query_timeout: QUERY_TIMEOUT,
            observe: Arc::new(|_| {}),
            standby: None,
        })
    }

    /// The most connections; 10 unless set, at least 1.
    #[must_use]
    pub fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections.max(1);
        self
    }

    /// What a write sets for its part on a node of a cluster, where the settings of its session do not hold.
    pub(crate) fn node_settings(&self) -> String {
        format!(
            "SET LOCAL lock_timeout = {}; SET LOCAL synchronous_commit = on",
            session::lock_timeout(self.write_timeout())
        )
    }

    /// How long to wait until one of the pool's connections is free or may be opened; 2 seconds unless set. Opening one is
    /// bounded by the hosts' own time-outs.
    #[must_use]
    pub const fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// How long a read may take; 5 seconds unless set. A write may take six times as long.
    #[must_use]
    pub fn query_timeout(mut self, timeout: Duration) -> Self {
        self.query_timeout = timeout;
        self.settings = Settings::new(write_timeout(timeout), &self.url.options);
        self
    }

    /// Receives an observation of every query; nothing does unless it is set.
    #[must_use]
    pub fn observe(mut self, observe: ObserveQuery) -> Self {
        self.observe = observe;
        self
    }

    /// Has lists read from a standby while it is behind by no more than `max_lag`. See [`Standby`](crate::Standby).
    ///
    /// # Errors
    /// [`Error::Configuration`] when the standby's URL wants a server that takes writes.
    pub fn read_from(mut self, standby: Self, max_lag: Duration) -> Result<Self, Error> {
        if let target @ (Target::ReadWrite | Target::Primary) = standby.url.target {
            return Err(Error::Configuration(format!(
                "target_session_attrs is {}, and lists are read from a standby: write target_session_attrs=standby",
                target.as_str()
            )));
        }
        self.standby = Some(Arc::new(ReadFrom { config: standby, max_lag }));
        Ok(self)
    }

    /// Each host of the standby's URL, with a configuration that reads from it alone; none where there is no standby.
    #[must_use]
    pub fn each_standby(&self) -> Vec<(String, Self)> {
        let Some(standby) = &self.standby else { return Vec::new() };
        let alone = |(host, config)| {
            let standby = Some(Arc::new(ReadFrom { config, max_lag: standby.max_lag }));
            (host, Self { standby, ..self.clone() })
        };
        standby.config.each_host().into_iter().map(alone).collect()
    }

    /// Whether connections are TLS.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn write_timeout(&self) -> Duration {
        write_timeout(self.query_timeout)
    }

    /// Each host with a configuration of it alone.
    #[must_use]
    pub fn each_host(&self) -> Vec<(String, Self)> {
        let alone = |host: &Host| {
            let hosts = Arc::new(Hosts::new(vec![host.clone()], false));
            (host.to_string(), Self { hosts, ..self.clone() })
        };
        self.hosts.list().iter().map(alone).collect()
    }

    /// Reaches the first host that answers, wanted or not.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when none can be reached, [`Error::Configuration`] when none gives a session that is fit for
    /// use.
    pub async fn find(&self) -> Result<FoundHost, Error> {
        let (_, Facts { standby, read_only, .. }) = self.connect_to(&[Target::Any]).await?;
        let wanted = Facts { standby, read_only, process: 0 }.suit(self.url.target).is_ok();
        Ok(FoundHost { standby, read_only, wanted })
    }

    /// Opens one connection: the hosts are tried in turn, each within its own time.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with each host and its cause, [`Error::Configuration`] when no host gives a session that is
    /// fit for use.
    pub(crate) async fn connect(&self) -> Result<AsyncPgConnection, Error> {
        let rounds = match self.url.target {
            Target::PreferStandby => &[Target::Standby, Target::Any][..],
            ref target => std::slice::from_ref(target),
        };
        self.connect_to(rounds).await.map(|(connection, _)| connection)
    }

    /// Opens one connection to a standby.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn connect_to_standby(&self) -> Result<AsyncPgConnection, Error> {
        self.connect_to(&[Target::Standby]).await.map(|(connection, _)| connection)
    }

    async fn connect_to(&self, rounds: &[Target]) -> Result<(AsyncPgConnection, Facts), Error> {
        let mut tried = Tried(Vec::new());
        for target in rounds {
            tried.0.clear();
            for (number, host) in self.hosts.order() {
                match self.connect_host(number, host, *target).await {
                    Ok(connected) => return Ok(connected),
                    Err(error) => tried.0.push((host.clone(), error)),
                }
            }
        }
        if tried.0.iter().all(|(_, error)| error.is_lasting()) {
            return Err(Error::Configuration(tried.to_string()));
        }
        Err(Error::Unavailable(tried.into()))
    }

    /// Tries a host's addresses in turn, each within the time-out.
    async fn connect_host(
        &self,
        number: usize,
        host: &Host,
        target: Target,
    ) -> Result<(AsyncPgConnection, Facts), SessionError> {
        let patience = self.url.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let silent = |_| SessionError::Silent(patience);
        let addresses = {
            let asking = self.hosts.asking(number);
            let addresses =
                tokio::time::timeout(patience, self.hosts.addresses(host)).await.map_err(silent)??;
            asking.resolved();
            addresses
        };
        let mut failed = None;
        for address in addresses {
            let asking = self.hosts.asking(number);
            match tokio::time::timeout(patience, self.connect_address(number, host, address, target)).await {
                Ok(Ok(connected)) => {
                    asking.answered();
                    return Ok(connected);
                }
                Ok(Err(error)) => {
                    asking.answered();
                    failed = Some(error);
                }
                Err(elapsed) => failed = Some(silent(elapsed)),
            }
        }
        Err(failed.unwrap_or_else(|| SessionError::Name(std::io::ErrorKind::NotFound.into())))
    }

    async fn connect_address(
        &self,
        number: usize,
        host: &Host,
        address: Option<SocketAddr>,
        target: Target,
    ) -> Result<(AsyncPgConnection, Facts), SessionError> {
        let mut driver = self.url.login.clone();
        driver.port(host.port).ssl_mode(SslMode::Disable);
        match &host.place {
            // The name is what the certificate must be for.
            Place::Tcp { name, .. } => driver.host(name),
            Place::Socket(directory) => driver.host_path(directory),
        };
        if let Some(address) = address {
            driver.hostaddr(address.ip());
        }
        let said = SaidProcess::default();
        match &self.tls {
            Some(tls) => {
                let tls = CodedTls(MakeRustlsConnect::new(ClientConfig::clone(tls)), Arc::clone(&said));
                driver.ssl_mode(SslMode::Require);
                if self.url.direct_tls {
                    driver.ssl_negotiation(SslNegotiation::Direct);
                }
                self.session(number, target, &said, || driver.connect(tls.clone())).await
            }
            None if address.is_some() => {
                // The stream is handed out where a handshake would begin without asking the server for one.
                driver.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
                let plaintext = CodedPlaintext(Arc::clone(&said));
                self.session(number, target, &said, || driver.connect(plaintext.clone())).await
            }
            // A socket of this machine has no such place: its errors have no code, and each counts as a defect.
            None => self.session(number, target, &said, || driver.connect(tokio_postgres::NoTls)).await,
        }
    }

    /// Connects, makes the session what it is to be, and sees that it is so.
    async fn session<S, F>(
        &self,
        number: usize,
        target: Target,
        said: &SaidProcess,
        connect: impl Fn() -> F,
    ) -> Result<(AsyncPgConnection, Facts), SessionError>
    where
        S: TlsStream + Unpin + Send + 'static,
        F: Future<Output = Result<(Client, Connection<Socket, S>), tokio_postgres::Error>>,
    {
        let mut seen_to_be_pinned = false;
        loop {
            let (client, connection) = connect().await?;
            let (made, connection) = driven(connection, self.settings.apply(&client)).await;
            let connection = connection?;
            let facts = made?;
            facts.suit(target)?;
            // Another process id than the server's is a pooler's.
            if seen_to_be_pinned || self.hosts.is_pinned(number) || said.get() == Some(&facts.process) {
                let connection = AsyncPgConnection::try_from_client_and_connection(client, connection).await;
                return Ok((connection.map_err(SessionError::Handover)?, facts));
            }
            // The session that is asked does not survive it, so there is another after it.
            if !driven(connection, session::is_pinned(&client)).await.0? {
                return Err(SessionError::NotPinned);
            }
            self.hosts.pinned(number);
            seen_to_be_pinned = true;
        }
    }

    pub(crate) fn pool(&self) -> Result<Pool<AsyncPgConnection>, Error> {
        let config = self.clone();
        let mut manager = ManagerConfig::default();
        manager.recycling_method = RecyclingMethod::Fast;
        manager.custom_setup = Box::new(move |_| {
            let config = config.clone();
            async move {
                let failed = |error: Error| {
                    let error = diesel::result::Error::QueryBuilderError(error.into());
                    ConnectionError::CouldntSetupConfiguration(error)
                };
                config.connect().await.map_err(failed)
            }
            .boxed()
        });
        Pool::builder(AsyncDieselConnectionManager::new_with_config("", manager))
            .max_size(self.pool_size)
            // The connection used last: its server process has its plans and pages at hand. Round robin over all of them
            // finds each one cold.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(self.acquire_timeout))
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Configuration(error.to_string()))
    }
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreConfig")
            .field("hosts", &self.hosts.list())
            .field("encrypted", &self.is_encrypted())
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}

fn write_timeout(query_timeout: Duration) -> Duration {
    query_timeout.saturating_mul(6)
}

/// Does some work with a connection's client while the connection is kept going. Of one that ended there is its error.
async fn driven<S, T>(
    mut connection: Connection<Socket, S>,
    work: impl Future<Output = T>,
) -> (T, Result<Connection<Socket, S>, SessionError>)
where
    S: TlsStream + Unpin,
{
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => (done, Ok(connection)),
        ended = &mut connection => {
            // Only now does its client hear of it.
            drop(connection);
            (work.await, Err(ended.err().map_or(SessionError::Closed, SessionError::Driver)))
        }
    }
}

/// The hosts that were tried, each with its own cause.
#[derive(Debug)]
struct Tried(Vec<(Host, SessionError)>);

impl std::fmt::Display for Tried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, (host, error)) in self.0.iter().enumerate() {
            let part = if number == 0 { "" } else { "; " };
            write!(f, "{part}{host}: {}", error.told())?;
        }
        Ok(())
    }
}

impl std::error::Error for Tried {
    /// The only host's cause; of several none stands for all.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self.0.as_slice() {
            [(_, error)] => Some(error),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_domain::Environment;

    use super::*;

    fn tls() -> Option<Arc<ClientConfig>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Some(Arc::new(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()))
    }

    fn config(url: &str, environment: Environment) -> Result<StoreConfig, Error> {
        StoreConfig::new(&SecretString::from(url), TlsPolicy::new(environment, false), tls())
    }

    #[test]
    fn production_takes_nothing_weaker_than_verify_full() {
        for mode in ["disable", "allow", "prefer", "require", "verify-ca"] {
            let url = format!("postgres://u:hunter2@db/muster?sslmode={mode}");
            let message = config(&url, Environment::Production).unwrap_err().to_string();
            assert!(message.contains(mode) && message.contains("verify-full"), "{message}");
            assert!(!message.contains("hunter2"));
        }
        for url in
            ["postgres://u:p@db/muster?sslmode=verify-full", "postgres://u:p@db/muster", "host=db user=u"]
        {
            let config = config(url, Environment::Production).unwrap();
            assert!(config.is_encrypted());
        }
    }

    #[test]
    fn development_is_plaintext_or_verified_and_nothing_between() {
        assert!(!config("postgres://u:p@db/muster", Environment::Development).unwrap().is_encrypted());
        assert!(
            config("postgres://u:p@db/muster?sslmode=verify-full", Environment::Development)
                .unwrap()
                .is_encrypted()
        );
        assert!(config("postgres://u:p@db/muster?sslmode=require", Environment::Development).is_err());
    }

    #[test]
    fn verification_needs_authorities() {
        let url = SecretString::from("postgres://u:p@db/muster?sslmode=verify-full");
        for environment in [Environment::Production, Environment::Development] {
            let refused = StoreConfig::new(&url, TlsPolicy::new(environment, false), None).unwrap_err();
            assert!(refused.to_string().contains("needs certificate authorities"), "{refused}");
        }
    }

    #[test]
    fn a_weaker_mode_is_not_hidden() {
        for (hidden, said) in [
            ("postgres://u:p@db/muster?sslmode=verify-full&sslmode=disable", "sslmode twice"),
            ("postgres://u:p@db/muster?sslmode=disable&sslmode=verify-full", "sslmode twice"),
            ("postgres://u:p@db/muster?sslmod%65=prefer", "sslmode=verify-full"),
            ("postgres://u:p@db/muster?sslmode=verify%2Dca", "sslmode=verify-full"),
            ("host=db user=u sslmode = prefer", "sslmode=verify-full"),
            ("host=db user=u sslmode = 'require'", "sslmode=verify-full"),
        ] {
            for environment in [Environment::Production, Environment::Development] {
                let message = config(hidden, environment).unwrap_err().to_string();
                assert!(message.contains(said), "{hidden}: {message}");
            }
        }
        let named = "postgres://u:p@db/muster?application_name=sslmode=verify-full&sslmode=disable";
        assert!(config(named, Environment::Production).is_err());
        assert!(!config(named, Environment::Development).unwrap().is_encrypted());
    }

    #[test]
    fn a_local_socket_is_not_taken_for_tls() {
        for url in ["postgres://%2Frun%2Fpostgresql/d", "postgres:///d?host=db,/run"] {
            let message = config(url, Environment::Production).unwrap_err().to_string();
            assert!(message.contains("a socket of this machine has no TLS"), "{message}");
            assert!(!config(url, Environment::Development).unwrap().is_encrypted());
        }
        let direct = "postgres://db/d?sslnegotiation=direct";
        assert!(config(direct, Environment::Production).is_ok());
        assert!(config(direct, Environment::Development).unwrap_err().to_string().contains("direct is TLS"));
    }

    #[test]
    fn options_do_not_take_away_what_muster_rests_on() {
        for name in ["synchronous_commit", "TimeZone", "default-transaction-isolation"] {
            let url = format!("postgres://db/d?options=-c%20{name}%3Doff");
            let message = config(&url, Environment::Production).unwrap_err().to_string();
            assert!(message.contains("leave it out"), "{message}");
        }
        assert!(config("host=db options='-c search_path=a -c jit=on'", Environment::Production).is_ok());
    }

    #[test]
    fn no_password_is_shown() {
        let config = config("postgres://u:hunter2@db/muster", Environment::Production).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        let odd = self::config("postgres://u:sslmode=hunter2@db/muster", Environment::Production).unwrap();
        assert!(!format!("{odd:?}").contains("hunter2"));
        for url in ["postgres://u:hunter2@db:port/muster", "postgres://u:hun/hunter2@db/muster"] {
            for environment in [Environment::Production, Environment::Development] {
                let error = self::config(url, environment).unwrap_err();
                assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
            }
        }
    }
}
