//! The worker's configuration. All keys are read before anything else happens ([`keys`]); each command then checks the
//! sections that it needs.

mod error;
pub(crate) mod keys;
pub(crate) mod log_filter;
mod secret;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use muster_domain::{Environment, Event, MaxClockSkew, TlsPolicy};
use muster_messaging::connection::{Credentials, ServerUrl, ServersError};
use muster_messaging::events::consumer::MAX_LANES;
use muster_messaging::events::envelope::MAX_BYTES;
use muster_messaging::tls::material::{MinimumVersion, TlsFiles};
use muster_storage::Store;
use secrecy::SecretString;
use serde::Deserialize;

pub(crate) use self::error::SettingsError;
use self::keys::Keys;
use self::log_filter::LogFilter;
pub(crate) use self::secret::Secret;

const READ_MAX_LAG: &str = "database.read_max_lag_ms";

/// A configuration whose keys are all known and of their form. Each section is checked when a command asks for it, so that
/// none needs what it does not use.
pub(crate) struct Configuration {
    raw: Raw,
    pub(crate) environment: Environment,
    pub(crate) policy: TlsPolicy,
    pub(crate) log: Log,
}

/// All that serving needs.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) environment: Environment,
    pub(crate) policy: TlsPolicy,
    pub(crate) nats: Nats,
    pub(crate) database: Database,
    pub(crate) events: Events,
    pub(crate) service: Service,
    pub(crate) limits: Limits,
    pub(crate) http: SocketAddr,
    pub(crate) traces: Option<Traces>,
    /// How long a start waits for what is missing.
    pub(crate) startup: Duration,
    pub(crate) shutdown: Duration,
}

#[derive(Debug)]
pub(crate) struct Nats {
    /// They have passed the policy.
    pub(crate) urls: Vec<String>,
    pub(crate) policy: TlsPolicy,
    pub(crate) tls: TlsFiles,
    pub(crate) minimum_tls: MinimumVersion,
    pub(crate) tls_first: bool,
    pub(crate) login: Option<Login>,
    pub(crate) give_up_after: Duration,
}

/// The secret for the login to NATS, and its kind. It is read anew for each connection, since it may change.
#[derive(Debug)]
pub(crate) struct Login {
    user: String,
    secret: Secret,
    read: ReadCredentials,
}

type ReadCredentials = fn(user: &str, secret: &Secret) -> Result<Credentials, SettingsError>;

impl Login {
    pub(crate) fn credentials(&self) -> Result<Credentials, SettingsError> {
        (self.read)(&self.user, &self.secret)
    }
}

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) url: Secret,
    pub(crate) policy: TlsPolicy,
    pub(crate) tls: TlsFiles,
    pub(crate) minimum_tls: MinimumVersion,
    pub(crate) pool_size: usize,
    pub(crate) acquire_timeout: Duration,
    pub(crate) query_timeout: Duration,
    /// The URL of a standby that lists may be read from.
    pub(crate) read_url: Option<Secret>,
    /// How far that may be behind.
    pub(crate) read_max_lag: Duration,
}

impl Database {
    /// The most connections to PostgreSQL.
    pub(crate) fn connections(&self) -> usize {
        match self.read_url {
            // As many to the standby, and one more by which it is compared with the primary.
            Some(_) => self.pool_size.saturating_mul(2).saturating_add(1),
            None => self.pool_size,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) batch: usize,
    pub(crate) in_flight: usize,
    pub(crate) max_deliveries: u32,
    pub(crate) max_bytes: usize,
    pub(crate) max_clock_skew: MaxClockSkew,
    /// How long the ids of applied events are kept.
    pub(crate) remember: Duration,
}

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) max_in_flight: usize,
    pub(crate) deadline: Duration,
}

/// Requests a second, and how many may come at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) community_per_second: u32,
    pub(crate) community_burst: u32,
    pub(crate) caller_per_second: u32,
    pub(crate) caller_burst: u32,
    pub(crate) callers: u64,
}

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) filter: LogFilter,
    pub(crate) json: bool,
}

/// Where spans go.
#[derive(Debug)]
pub(crate) struct Traces {
    pub(crate) endpoint: Uri,
    pub(crate) tls: TlsFiles,
    /// Of a hundred traces that begin here, how many are kept.
    pub(crate) sample_percent: u8,
}

impl Configuration {
    /// Reads the file, if the command line or a variable names one, and this process's variables.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, SettingsError> {
        Self::read(file, std::env::vars_os())
    }

    fn read(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, SettingsError> {
        let raw: Raw = Keys::read(file, variables)?
            .try_deserialize()
            .map_err(|error| SettingsError::new(format!("the configuration is wrong: {error}")))?;
        let environment = raw.environment()?;
        let policy = TlsPolicy::new(environment, raw.require_tls);
        let log = raw.log.check(environment)?;
        Ok(Self { raw, environment, policy, log })
    }

    /// The settings of a connection to NATS.
    pub(crate) fn nats(&self) -> Result<Nats, SettingsError> {
        self.raw.nats.clone().check(self.policy)
    }

    /// The settings of a connection to PostgreSQL.
    pub(crate) fn database(&self) -> Result<Database, SettingsError> {
        self.raw.database.clone().check(self.policy)
    }

    /// Where the worker's own HTTP is.
    pub(crate) fn http(&self) -> Result<SocketAddr, SettingsError> {
        self.raw.http.address.parse().map_err(|_| {
            let problem = format!("{:?} is not an address: write ip:port", self.raw.http.address);
            SettingsError::key("http.address", problem)
        })
    }

    /// How long a start waits for what is missing.
    pub(crate) fn startup(&self) -> Result<Duration, SettingsError> {
        millis("startup.wait_ms", self.raw.startup.wait_ms, 0..=86_400_000)
    }

    /// All that serving needs.
    pub(crate) fn serving(&self) -> Result<Settings, SettingsError> {
        let raw = &self.raw;
        let database = self.database()?;
        let service = Service {
            max_in_flight: bounded("service.max_in_flight", raw.service.max_in_flight, 1..=4096)?,
            deadline: millis("service.deadline_ms", raw.service.deadline_ms, 100..=60_000)?,
        };
        // `communities.find` may wait as long as a standby may be behind.
        if database.read_url.is_some() && database.read_max_lag > service.deadline / 2 {
            let problem =
                "is more than half of service.deadline_ms, within which communities.find waits for it";
            return Err(SettingsError::key(READ_MAX_LAG, problem));
        }
        let events = raw.events.check()?;
        // Each batch holds a connection; a pool that they use up looks like a database that does not answer.
        if database.pool_size < events.in_flight.saturating_add(2) {
            let problem = format!(
                "{} is less than two above events.in_flight, {}: nothing is left for requests and for what looks after the database",
                database.pool_size, events.in_flight
            );
            return Err(SettingsError::key("database.pool_size", problem));
        }
        Ok(Settings {
            environment: self.environment,
            policy: self.policy,
            nats: self.nats()?,
            database,
            events,
            service,
            limits: Limits {
                community_per_second: rate("limits.community_per_second", raw.limits.community_per_second)?,
                community_burst: rate("limits.community_burst", raw.limits.community_burst)?,
                caller_per_second: rate("limits.caller_per_second", raw.limits.caller_per_second)?,
                caller_burst: rate("limits.caller_burst", raw.limits.caller_burst)?,
                callers: bounded("limits.callers", raw.limits.callers, 1..=1_000_000)?,
            },
            http: self.http()?,
            traces: raw.traces.clone().check(self.policy)?,
            startup: self.startup()?,
            shutdown: millis("shutdown.deadline_ms", raw.shutdown.deadline_ms, 100..=600_000)?,
        })
    }

    /// The verdict of the policy on each NATS server, for a report.
    pub(crate) fn verdicts(&self) -> Vec<Result<ServerUrl, ServersError>> {
        ServerUrl::verdicts(&self.raw.nats.urls, self.policy)
    }
}

impl Settings {
    /// Every file that certificates and secrets are read from.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let secret = self.nats.login.as_ref().map(|login| &login.secret);
        let database = [Some(&self.database.url), self.database.read_url.as_ref()];
        let secrets =
            secret.into_iter().chain(database.into_iter().flatten()).filter_map(|secret| match secret {
                Secret::Value { .. } => None,
                Secret::File { path, .. } => Some(path.clone()),
            });
        let traces = self.traces.iter().map(|traces| &traces.tls);
        let certificates = [&self.nats.tls, &self.database.tls]
            .into_iter()
            .chain(traces)
            .flat_map(|files| [files.ca.clone(), files.certificate.clone(), files.key.clone()]);
        secrets.chain(certificates.flatten()).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    environment: String,
    require_tls: bool,
    nats: RawNats,
    database: RawDatabase,
    events: RawEvents,
    service: RawService,
    limits: RawLimits,
    http: RawHttp,
    log: RawLog,
    traces: RawTraces,
    startup: RawStartup,
    shutdown: RawShutdown,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNats {
    urls: Vec<String>,
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    minimum_tls: String,
    tls_first: bool,
    user: Option<String>,
    password: Option<SecretString>,
    password_file: Option<PathBuf>,
    token: Option<SecretString>,
    token_file: Option<PathBuf>,
    nkey_file: Option<PathBuf>,
    credentials_file: Option<PathBuf>,
    give_up_after_ms: i64,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDatabase {
    url: Option<SecretString>,
    url_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    minimum_tls: String,
    pool_size: i64,
    acquire_timeout_ms: i64,
    query_timeout_ms: i64,
    read_url_file: Option<PathBuf>,
    read_max_lag_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvents {
    batch: i64,
    in_flight: i64,
    max_deliveries: i64,
    max_bytes: i64,
    max_clock_skew_ms: i64,
    remember_days: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    max_in_flight: i64,
    deadline_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    community_per_second: i64,
    community_burst: i64,
    caller_per_second: i64,
    caller_burst: i64,
    callers: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    address: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    filter: Option<String>,
    format: String,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTraces {
    endpoint: Option<String>,
    ca_file: Option<PathBuf>,
    sample_percent: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStartup {
    wait_ms: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShutdown {
    deadline_ms: i64,
}

impl Raw {
    fn environment(&self) -> Result<Environment, SettingsError> {
        let parsed = self.environment.parse();
        parsed
            .map_err(|error| SettingsError::key("environment", format!("{:?} is {error}", self.environment)))
    }
}

impl RawEvents {
    fn check(&self) -> Result<Events, SettingsError> {
        Ok(Events {
            batch: bounded("events.batch", self.batch, 1..=Event::MAX_BATCH.into())?,
            in_flight: bounded("events.in_flight", self.in_flight, 1..=MAX_LANES)?,
            max_deliveries: bounded("events.max_deliveries", self.max_deliveries, 1..=1000)?,
            max_bytes: bounded("events.max_bytes", self.max_bytes, MAX_BYTES)?,
            max_clock_skew: clock_skew("events.max_clock_skew_ms", self.max_clock_skew_ms)?,
            remember: remember("events.remember_days", self.remember_days)?,
        })
    }
}

impl RawLog {
    fn check(&self, environment: Environment) -> Result<Log, SettingsError> {
        let json = match self.format.as_str() {
            "auto" => environment == Environment::Production,
            "json" => true,
            "text" => false,
            other => {
                return Err(SettingsError::key("log.format", format!("{other:?} is not auto, json or text")));
            }
        };
        let filter = self.filter.as_deref().unwrap_or_default().parse();
        Ok(Log { json, filter: filter.map_err(|error| SettingsError::key("log.filter", error))? })
    }
}

impl RawTraces {
    fn check(self, policy: TlsPolicy) -> Result<Option<Traces>, SettingsError> {
        const KEY: &str = "traces.endpoint";
        let sample_percent = bounded("traces.sample_percent", self.sample_percent, 0..=100)?;
        let not_used = |why: &str| {
            let problem = format!("is set and would not be used: {why}");
            Err(SettingsError::key("traces.ca_file", problem))
        };
        let Some(text) = self.endpoint else {
            return match self.ca_file {
                Some(_) => not_used("traces.endpoint is not set"),
                None => Ok(None),
            };
        };
        // It may hold a password, so it is not repeated.
        let form = || SettingsError::key(KEY, "is not an URL: write https://collector:4318/v1/traces");
        let endpoint: Uri = text.parse().map_err(|_| form())?;
        let (scheme, host) = endpoint.scheme_str().zip(endpoint.host()).ok_or_else(form)?;
        if endpoint.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(SettingsError::key(
                KEY,
                "holds a password: give headers in OTEL_EXPORTER_OTLP_HEADERS",
            ));
        }
        let here = host == "localhost"
            || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        match scheme {
            "https" => {}
            "http" if here || !policy.is_required() => {}
            "http" => {
                return Err(SettingsError::key(
                    KEY,
                    format!("http://{host} is plaintext, and TLS is {policy}: write https://"),
                ));
            }
            _ => return Err(form()),
        }
        if scheme != "https" && self.ca_file.is_some() {
            return not_used("traces.endpoint is not https");
        }
        let tls = TlsFiles { ca: self.ca_file, ..TlsFiles::default() };
        Ok(Some(Traces { endpoint, tls, sample_percent }))
    }
}

impl RawNats {
    fn check(self, policy: TlsPolicy) -> Result<Nats, SettingsError> {
        let password = secret("nats.password", self.password, "nats.password_file", self.password_file)?;
        let token = secret("nats.token", self.token, "nats.token_file", self.token_file)?;
        let nkey = self.nkey_file.map(|path| Secret::File { key: "nats.nkey_file", path });
        let credentials =
            self.credentials_file.map(|path| Secret::File { key: "nats.credentials_file", path });
        let login: Option<(Secret, ReadCredentials)> = match (&self.user, password, token, nkey, credentials)
        {
            (None, None, None, None, None) => None,
            (Some(_), Some(password), None, None, None) => Some((password, |user, secret| {
                Ok(Credentials::UserPassword { user: user.to_owned(), password: secret.line()? })
            })),
            (None, None, Some(token), None, None) => {
                Some((token, |_, secret| secret.line().map(Credentials::Token)))
            }
            (None, None, None, Some(nkey), None) => Some((nkey, |_, secret| {
                Credentials::nkey(&secret.line()?)
                    .map_err(|error| secret.refused(format!("is refused: {error}")))
            })),
            (None, None, None, None, Some(file)) => Some((file, |_, secret| {
                Credentials::file(&secret.document()?)
                    .map_err(|error| secret.refused(format!("is refused: {error}")))
            })),
            _ => {
                return Err(SettingsError::new(
                    "nats.user, nats.password_file, nats.token_file, nats.nkey_file, nats.credentials_file: give user with \
                     password_file, or one of the others, or none of them",
                ));
            }
        };
        ServerUrl::list(&self.urls, policy).map_err(|error| SettingsError::key("nats.urls", error))?;
        Ok(Nats {
            urls: self.urls,
            policy,
            tls: files("nats", self.ca_file, self.certificate_file, self.key_file)?,
            minimum_tls: minimum("nats.minimum_tls", &self.minimum_tls)?,
            tls_first: self.tls_first,
            login: login.map(|(secret, read)| Login { user: self.user.unwrap_or_default(), secret, read }),
            give_up_after: millis("nats.give_up_after_ms", self.give_up_after_ms, 1000..=86_400_000)?,
        })
    }
}

impl RawDatabase {
    fn check(self, policy: TlsPolicy) -> Result<Database, SettingsError> {
        let url = secret("database.url", self.url, "database.url_file", self.url_file)?.ok_or_else(|| {
            SettingsError::key(
                "database.url_file",
                "is not set: name a file that holds postgres://user:password@host:5432/database?sslmode=verify-full",
            )
        })?;
        Ok(Database {
            url,
            policy,
            tls: files("database", self.ca_file, self.certificate_file, self.key_file)?,
            minimum_tls: minimum("database.minimum_tls", &self.minimum_tls)?,
            pool_size: bounded("database.pool_size", self.pool_size, 2..=500)?,
            acquire_timeout: millis("database.acquire_timeout_ms", self.acquire_timeout_ms, 10..=60_000)?,
            query_timeout: millis("database.query_timeout_ms", self.query_timeout_ms, 100..=60_000)?,
            read_url: self.read_url_file.map(|path| Secret::File { key: "database.read_url_file", path }),
            read_max_lag: millis(READ_MAX_LAG, self.read_max_lag_ms, 200..=30_000)?,
        })
    }
}

fn files(
    section: &str,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<TlsFiles, SettingsError> {
    if certificate.is_some() != key.is_some() {
        return Err(SettingsError::key(
            &format!("{section}.key_file"),
            "certificate_file and key_file go together: set both or neither",
        ));
    }
    Ok(TlsFiles { ca, certificate, key })
}

fn minimum(key: &str, version: &str) -> Result<MinimumVersion, SettingsError> {
    match version {
        "1.2" => Ok(MinimumVersion::Tls12),
        "1.3" => Ok(MinimumVersion::Tls13),
        other => Err(SettingsError::key(
            key,
            format!("{other:?} is not a version of TLS: write \"1.3\" or \"1.2\""),
        )),
    }
}

fn secret(
    value_key: &'static str,
    value: Option<SecretString>,
    file_key: &'static str,
    path: Option<PathBuf>,
) -> Result<Option<Secret>, SettingsError> {
    match (value, path) {
        (Some(_), Some(_)) => {
            Err(SettingsError::key(value_key, format!("is set, and so is {file_key}: set one")))
        }
        (Some(text), None) => Ok(Some(Secret::Value { key: value_key, text })),
        (None, Some(path)) => Ok(Some(Secret::File { key: file_key, path })),
        (None, None) => Ok(None),
    }
}

fn bounded<T: TryFrom<i64> + PartialOrd + fmt::Display>(
    key: &str,
    value: i64,
    allowed: RangeInclusive<T>,
) -> Result<T, SettingsError> {
    let refused = || {
        let (least, most) = (allowed.start(), allowed.end());
        SettingsError::key(key, format!("{value} is out of range: write {least} to {most}"))
    };
    T::try_from(value).ok().filter(|value| allowed.contains(value)).ok_or_else(refused)
}

fn millis(key: &str, value: i64, allowed: RangeInclusive<u64>) -> Result<Duration, SettingsError> {
    bounded(key, value, allowed).map(Duration::from_millis)
}

fn clock_skew(key: &str, value: i64) -> Result<MaxClockSkew, SettingsError> {
    let (least, most) = (MaxClockSkew::MIN.get().as_millis(), MaxClockSkew::MAX.get().as_millis());
    let skew = u64::try_from(value).ok().map(Duration::from_millis).and_then(MaxClockSkew::new);
    skew.ok_or_else(|| SettingsError::key(key, format!("{value} is out of range: write {least} to {most}")))
}

fn remember(key: &str, days: i64) -> Result<Duration, SettingsError> {
    const DAY: Duration = Duration::from_hours(24);
    let most = u32::try_from(Store::MAX_REMEMBERED.as_secs() / DAY.as_secs()).unwrap_or(u32::MAX);
    bounded(key, days, 1..=most).map(|days| DAY.saturating_mul(days))
}

fn rate(key: &str, value: i64) -> Result<u32, SettingsError> {
    bounded(key, value, 1..=1_000_000)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(file: Option<&Path>, variables: &[(&str, &str)]) -> Result<Configuration, SettingsError> {
        // Of two with one name the last is taken, as a shell would.
        let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
        Configuration::read(file, variables.into_iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn load(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let least = [
            ("MUSTER__NATS__URLS", "tls://nats-1:4222, tls://nats-2:4222"),
            ("MUSTER__DATABASE__URL", "postgres://muster:hunter2@db/muster"),
        ];
        read(None, &[&least, variables].concat())?.serving()
    }

    #[test]
    fn production_is_the_default() {
        let settings = load(&[]).unwrap();
        assert_eq!(settings.environment, Environment::Production);
        assert_eq!(settings.policy.to_string(), "required: production");
        assert_eq!(settings.nats.urls.len(), 2);
        let log = read(None, &[("MUSTER__LOG__FILTER", "")]).unwrap().log;
        assert!(log.json && log.filter == LogFilter::default());
        let asked = read(None, &[("MUSTER__LOG__FILTER", "debug")]).unwrap();
        assert_eq!(asked.log.filter, "debug".parse().unwrap());
    }

    #[test]
    fn a_wrong_key_is_named() {
        let wrong = [
            (("MUSTER__NATS__URSL", "tls://a:4222"), "ursl"),
            (("MUSTER__ENVIRONMENT", "prod"), "prod"),
            (("MUSTER__DATABASE__POOL_SIZE", "many"), "pool_size"),
            (("MUSTER__DATABASE__POOL_SIZE", "0"), "2 to 500"),
            (("MUSTER__DATABASE__POOL_SIZE", "3"), "above events.in_flight, 3"),
            (("MUSTER__DATABASE__READ_MAX_LAG_MS", "199"), "200 to 30000"),
            (("MUSTER__EVENTS__BATCH", "5000"), "MUSTER__EVENTS__BATCH"),
            (("MUSTER__EVENTS__MAX_BYTES", "4194305"), "1024 to 4194304"),
            (("MUSTER__EVENTS__MAX_CLOCK_SKEW_MS", "999"), "1000 to 86400000"),
            (("MUSTER__EVENTS__REMEMBER_DAYS", "0"), "1 to 44"),
            (("MUSTER__EVENTS__REMEMBER_DAYS", "45"), "1 to 44"),
            (("MUSTER__HTTP__ADDRESS", "8080"), "ip:port"),
            (("MUSTER__NATS__MINIMUM_TLS", "1.1"), "1.1"),
            (("MUSTER__NATS__KEY_FILE", "/k"), "certificate_file"),
            (("MUSTER__NATS__USER", "worker"), "password_file"),
            (("MUSTER__LIMITS__CALLERS", "-1"), "limits.callers"),
            (("MUSTER__LOG__FILTER", "nonsense"), "log.filter: \"nonsense\""),
        ];
        for ((key, value), named) in wrong {
            let message = load(&[(key, value)]).map(|_| ()).unwrap_err().to_string();
            assert!(message.contains(named), "{key}={value}: {message}");
        }
    }

    #[test]
    fn one_plaintext_server_among_many_is_refused_without_its_password() {
        let urls = "tls://nats-1:4222,nats://worker:hunter2@nats-2:4222";
        let message = load(&[("MUSTER__NATS__URLS", urls)]).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("nats-2:4222") && !message.contains("hunter2"), "{message}");
        let in_development =
            [("MUSTER__NATS__URLS", "nats://localhost:4222"), ("MUSTER__ENVIRONMENT", "development")];
        assert!(load(&in_development).is_ok());
        let tightened = [in_development.as_slice(), &[("MUSTER__REQUIRE_TLS", "true")]].concat();
        assert!(load(&tightened).map(|_| ()).unwrap_err().to_string().contains("required: configured"));
    }

    #[test]
    fn every_server_has_its_verdict_and_every_file_is_watched() {
        let variables = [
            ("MUSTER__NATS__URLS", "tls://a,nats://u:hunter2@b,ws://c"),
            ("MUSTER__REQUIRE_TLS", "true"),
            ("MUSTER__ENVIRONMENT", "test"),
        ];
        let configuration = read(None, &variables).unwrap();
        assert_eq!(configuration.policy.to_string(), "required: configured");
        assert_eq!(
            configuration.verdicts().iter().map(Result::is_ok).collect::<Vec<_>>(),
            [true, false, false]
        );
        let settings = load(&[
            ("MUSTER__NATS__CREDENTIALS_FILE", "/s/creds"),
            ("MUSTER__NATS__CA_FILE", "/s/ca"),
            ("MUSTER__DATABASE__CA_FILE", "/s/db-ca"),
            ("MUSTER__DATABASE__READ_URL_FILE", "/s/read-url"),
            ("MUSTER__TRACES__ENDPOINT", "https://collector:4318/v1/traces"),
            ("MUSTER__TRACES__CA_FILE", "/s/traces-ca"),
        ]);
        let files: Vec<PathBuf> =
            ["/s/creds", "/s/read-url", "/s/ca", "/s/db-ca", "/s/traces-ca"].map(PathBuf::from).to_vec();
        assert_eq!(settings.unwrap().files(), files);
    }

    #[test]
    fn a_standby_may_be_behind_for_less_than_a_request_may_take() {
        let far = ("MUSTER__DATABASE__READ_MAX_LAG_MS", "2501");
        let standby = ("MUSTER__DATABASE__READ_URL_FILE", "/s/read-url");
        let message = load(&[far, standby]).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("service.deadline_ms"), "{message}");
        assert!(load(&[standby]).unwrap().database.connections() > 20);
        assert_eq!(load(&[far]).unwrap().database.connections(), 10, "it is not used");
        assert!(load(&[far, standby, ("MUSTER__SERVICE__DEADLINE_MS", "5002")]).is_ok());
    }

    #[test]
    fn traces_go_nowhere_unless_asked_and_not_in_plaintext_where_tls_is_required() {
        const KEY: &str = "MUSTER__TRACES__ENDPOINT";
        assert!(load(&[]).unwrap().traces.is_none());
        for endpoint in
            ["https://collector:4318/v1/traces", "http://127.0.0.1:4318/v1/traces", "http://[::1]/v1/traces"]
        {
            assert_eq!(load(&[(KEY, endpoint)]).unwrap().traces.unwrap().endpoint.to_string(), endpoint);
        }
        let development = [
            (KEY, "http://collector:4318/v1/traces"),
            ("MUSTER__NATS__URLS", "nats://localhost:4222"),
            ("MUSTER__ENVIRONMENT", "development"),
        ];
        assert!(load(&development).unwrap().traces.is_some());
        for endpoint in [
            "http://collector:4318/v1/traces",
            "http://127.0.0.1.example/v1/traces",
            "https://user:hunter2@collector/v1/traces",
            "collector:4318",
            "ftp://collector",
        ] {
            let message = load(&[(KEY, endpoint)]).map(|_| ()).unwrap_err().to_string();
            assert!(
                message.contains("traces.endpoint") && !message.contains("hunter2"),
                "{endpoint}: {message}"
            );
        }
    }

    #[test]
    fn an_authority_for_traces_that_would_not_be_used_is_refused() {
        let ca = ("MUSTER__TRACES__CA_FILE", "/s/ca");
        for endpoint in ["", "http://127.0.0.1:4318/v1/traces"] {
            let message = load(&[ca, ("MUSTER__TRACES__ENDPOINT", endpoint)]).map(|_| ()).unwrap_err();
            assert!(message.to_string().starts_with("traces.ca_file: is set and would not"), "{message}");
        }
    }

    #[test]
    fn a_wrong_section_fails_only_the_commands_that_read_it() {
        let database = ("MUSTER__DATABASE__URL_FILE", "/s/url");
        let without_nats = read(None, &[database]).unwrap();
        assert!(without_nats.database().is_ok() && without_nats.http().is_ok());
        assert!(without_nats.nats().unwrap_err().to_string().contains("nats.urls"));
        assert!(without_nats.serving().unwrap_err().to_string().contains("nats.urls"));
        let without_database = read(None, &[("MUSTER__NATS__URLS", "tls://a")]).unwrap();
        assert!(without_database.nats().is_ok());
        assert!(without_database.database().unwrap_err().to_string().contains("database.url_file"));
        let wrong = read(None, &[("MUSTER__HTTP__ADDRESS", "8080"), database]).unwrap();
        assert!(wrong.database().is_ok() && wrong.http().is_err());
    }

    #[test]
    fn an_empty_variable_names_nothing_and_a_file_takes_its_place() {
        let empty = [
            ("MUSTER__NATS__CA_FILE", ""),
            ("MUSTER__NATS__PASSWORD", ""),
            ("MUSTER__DATABASE__URL_FILE", ""),
            ("MUSTER__EVENTS__BATCH", ""),
            ("MUSTER__REQUIRE_TLS", ""),
        ];
        let settings = load(&empty).unwrap();
        assert_eq!((settings.nats.tls, settings.events.batch), (TlsFiles::default(), 1000));
        assert!(settings.nats.login.is_none());
        let message = load(&[("MUSTER__DATABASE__URL", "")]).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("database.url_file"), "{message}");
    }

    #[test]
    fn no_secret_is_shown() {
        let settings =
            load(&[("MUSTER__NATS__USER", "worker"), ("MUSTER__NATS__PASSWORD", "hunter2")]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_is_read_and_a_variable_wins() {
        let path = std::env::temp_dir().join(format!("muster-settings-{}.toml", std::process::id()));
        std::fs::write(&path, "[nats]\nurls = [\"tls://a:4222\"]\n[events]\nbatch = 7\nin_flight = 8\n")
            .unwrap();
        let variables = [("MUSTER__DATABASE__URL", "postgres://db/muster"), ("MUSTER__EVENTS__BATCH", "8")];
        let settings = read(Some(&path), &variables).unwrap().serving().unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!((settings.events.batch, settings.events.in_flight), (8, 8));
    }
}
