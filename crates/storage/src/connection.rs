//! Connections to PostgreSQL: over verified TLS where the policy requires it, each with the session's bounds set.

use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::QueueMode;
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod};
use futures_util::FutureExt;
use muster_domain::TlsPolicy;
use rustls::ClientConfig;
use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::sqlstate::{CodedPlaintext, CodedTls};
use crate::{Error, ObserveQuery};

/// How to reach PostgreSQL. [`StoreConfig::new`] holds it to the TLS policy, so that one in hand is fit to use.
#[derive(Clone)]
pub struct StoreConfig {
    connect: tokio_postgres::Config,
    tls: Option<Arc<ClientConfig>>,
    pub(crate) pool_size: usize,
    pub(crate) acquire_timeout: Duration,
    pub(crate) query_timeout: Duration,
    pub(crate) observe: ObserveQuery,
}

/// How the planner is to plan. Every statement was written for one plan, index by index in the order of the list, and a
/// table of a thousand rows must not teach a session a plan that is wrong for a million: so one plan is made a statement,
/// without regard to its values, and what reads whole tables or sorts what an index has in order is ruled out.
const PLANS: &str = "-c plan_cache_mode=force_generic_plan -c jit=off -c enable_seqscan=off \
                     -c enable_bitmapscan=off -c enable_hashjoin=off -c enable_mergejoin=off";

impl StoreConfig {
    /// Checks a connection URL against the policy.
    ///
    /// Where TLS is required, `tls` verifies the server's certificate and host name, and the URL's `sslmode` is
    /// `verify-full` or absent, which means the same. Where it is optional, an URL without `sslmode=verify-full` is
    /// plaintext.
    ///
    /// # Errors
    /// [`Error::Configuration`] when the URL does not parse, or is weaker than the policy.
    pub fn new(url: &SecretString, policy: TlsPolicy, tls: Option<Arc<ClientConfig>>) -> Result<Self, Error> {
        let refused = |why: &str| Err(Error::Configuration(why.to_owned()));
        let url = url.expose_secret();
        let mode = sslmode(url);
        let encrypted = match (policy.is_required(), mode) {
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
        // tokio-postgres knows `require` and no stricter mode; the certificate and the name are checked by `tls`.
        let parsed = url.replace("sslmode=verify-full", "sslmode=require").parse::<tokio_postgres::Config>();
        // The parser's error may quote the URL, and with it the password.
        let Ok(mut connect) = parsed else {
            return refused(
                "it does not parse: write postgres://user:password@host:5432/database?sslmode=verify-full",
            );
        };
        let meant = match mode {
            Some("verify-full") => SslMode::Require,
            Some(_) => SslMode::Disable,
            None => SslMode::Prefer,
        };
        if connect.get_ssl_mode() != meant {
            return refused("it sets sslmode twice, or in other letters: write sslmode=verify-full once");
        }
        if encrypted && tls.is_none() {
            return refused("sslmode=verify-full needs certificate authorities to verify against");
        }
        connect
            .ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable })
            .application_name("muster")
            .connect_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(30))
            .tcp_user_timeout(Duration::from_secs(20));
        Ok(Self {
            connect,
            tls: tls.filter(|_| encrypted),
            pool_size: 10,
            acquire_timeout: Duration::from_secs(2),
            query_timeout: Duration::from_secs(5),
            observe: Arc::new(|_| {}),
        })
    }

    /// The most connections; 10 unless set, at least 1.
    #[must_use]
    pub fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections.max(1);
        self
    }

    /// How long to wait for a free connection; 2 seconds unless set.
    #[must_use]
    pub const fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// How long a read, or opening a connection, may take; 5 seconds unless set. A write may take six times as long.
    #[must_use]
    pub const fn query_timeout(mut self, timeout: Duration) -> Self {
        self.query_timeout = timeout;
        self
    }

    /// Who is told of every query; nobody unless set.
    #[must_use]
    pub fn observe(mut self, observe: ObserveQuery) -> Self {
        self.observe = observe;
        self
    }

    /// Whether connections are TLS.
    #[must_use]
    pub const fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn write_timeout(&self) -> Duration {
        self.query_timeout.saturating_mul(6)
    }

    fn session(&self) -> tokio_postgres::Config {
        let mut connect = self.connect.clone();
        let asked = connect.get_options().unwrap_or_default().to_owned();
        // An event is acknowledged after its commit, so a commit must be on disk whatever the server's default is.
        // A lock is waited for less long than a statement may run, so that the message tells the two apart. A read that
        // outlasts its deadline is given up with its connection, and the server looks whether the connection is still
        // there.
        let write = self.write_timeout().as_millis();
        connect.options(format!(
            "-c statement_timeout={write} -c lock_timeout={lock} -c idle_in_transaction_session_timeout={write} \
             -c client_connection_check_interval=1s \
             -c TimeZone=UTC -c synchronous_commit=on {PLANS} {asked}",
            lock = write / 2,
        ));
        connect
    }

    /// Opens one connection, within the time of a read: a server that accepts and then says nothing is given up.
    pub(crate) async fn connect(&self) -> ConnectionResult<AsyncPgConnection> {
        let late = |_| ConnectionError::BadConnection("the server did not answer in time".to_owned());
        tokio::time::timeout(self.query_timeout, self.handshake()).await.map_err(late)?
    }

    async fn handshake(&self) -> ConnectionResult<AsyncPgConnection> {
        let mut session = self.session();
        let failed = |error: tokio_postgres::Error| {
            ConnectionError::CouldntSetupConfiguration(diesel::result::Error::QueryBuilderError(Box::new(
                error,
            )))
        };
        // The connection is handed over with its client, or its errors would vanish.
        match &self.tls {
            Some(tls) => {
                let tls = CodedTls(MakeRustlsConnect::new(ClientConfig::clone(tls)));
                let (client, connection) = session.connect(tls).await.map_err(failed)?;
                AsyncPgConnection::try_from_client_and_connection(client, connection).await
            }
            None if session.get_hosts().iter().all(|host| matches!(host, Host::Tcp(_))) => {
                // The stream is handed out where a handshake would begin without asking the server for one.
                session.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
                let (client, connection) = session.connect(CodedPlaintext).await.map_err(failed)?;
                AsyncPgConnection::try_from_client_and_connection(client, connection).await
            }
            // A socket of this machine has no such place: its errors have no code, and each counts as a defect.
            None => {
                let (client, connection) = session.connect(tokio_postgres::NoTls).await.map_err(failed)?;
                AsyncPgConnection::try_from_client_and_connection(client, connection).await
            }
        }
    }

    pub(crate) fn pool(&self) -> Result<Pool<AsyncPgConnection>, Error> {
        let config = self.clone();
        let mut manager = ManagerConfig::default();
        manager.recycling_method = RecyclingMethod::Fast;
        manager.custom_setup = Box::new(move |_| {
            let config = config.clone();
            async move { config.connect().await }.boxed()
        });
        Pool::builder(AsyncDieselConnectionManager::new_with_config("", manager))
            .max_size(self.pool_size)
            // The connection used last: its server process has its plans and pages at hand. Round robin over all of them
            // finds each one cold.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(self.acquire_timeout))
            .create_timeout(Some(self.query_timeout))
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Configuration(error.to_string()))
    }
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreConfig")
            .field("hosts", &self.connect.get_hosts())
            .field("database", &self.connect.get_dbname())
            .field("encrypted", &self.is_encrypted())
            .field("pool_size", &self.pool_size)
            .finish_non_exhaustive()
    }
}

/// The value of `sslmode` in an URL or a keyword string.
fn sslmode(url: &str) -> Option<&str> {
    let (_, value) = url.split_once("sslmode=")?;
    value.split(['&', ' ', '#']).next()
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
            assert_eq!(config.connect.get_ssl_mode(), SslMode::Require);
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
        for hidden in [
            "postgres://u:p@db/muster?sslmode=verify-full&sslmode=disable",
            "postgres://u:p@db/muster?application_name=sslmode=verify-full&sslmode=disable",
            "postgres://u:p@db/muster?sslmod%65=disable",
            "host=db user=u sslmode = disable",
            "host=db user=u sslmode = require",
        ] {
            for environment in [Environment::Production, Environment::Development] {
                let message = config(hidden, environment).unwrap_err().to_string();
                assert!(message.contains("sslmode=verify-full once"), "{hidden}: {message}");
            }
        }
    }

    #[test]
    fn no_password_is_shown() {
        let config = config("postgres://u:hunter2@db/muster", Environment::Production).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
        for url in ["postgres://u:hunter2@db:port/muster", "postgres://u:sslmode=hunter2@db/muster"] {
            for environment in [Environment::Production, Environment::Development] {
                let error = self::config(url, environment).unwrap_err();
                assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
            }
        }
    }
}
