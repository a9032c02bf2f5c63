//! The worker's configuration: built-in defaults, then a TOML file, then `MUSTER__…` variables. It is read and checked
//! whole before anything else happens.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Config, File, FileFormat};
use hyper::Uri;
use muster_domain::{Environment, MaxClockSkew, TlsPolicy};
use muster_messaging::events::envelope::MAX_BYTES;
use muster_messaging::tls::material::{MinimumVersion, TlsFiles};
use muster_messaging::tls::server::{ServerUrl, Servers, ServersError};
use secrecy::SecretString;
use serde::{Deserialize, Deserializer};

/// The defaults, in the form of the file.
pub(crate) const DEFAULTS: &str = include_str!("defaults.toml");

/// A checked configuration.
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
    pub(crate) log: Log,
    pub(crate) traces: Option<Traces>,
    /// How long a start waits for what is missing.
    pub(crate) startup: Duration,
    pub(crate) shutdown: Duration,
}

#[derive(Debug)]
pub(crate) struct Nats {
    pub(crate) servers: Servers,
    pub(crate) tls: TlsFiles,
    pub(crate) minimum_tls: MinimumVersion,
    pub(crate) tls_first: bool,
    pub(crate) auth: AuthFrom,
    pub(crate) give_up_after: Duration,
}

/// Where the credentials for NATS come from.
#[derive(Debug)]
pub(crate) enum AuthFrom {
    Nothing,
    UserPassword(String, Secret),
    Token(Secret),
    NKey(Secret),
    Credentials(Secret),
}

/// A secret, or the file that holds it.
#[derive(Debug)]
pub(crate) enum Secret {
    Value(SecretString),
    File { key: &'static str, path: PathBuf },
}

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) url: Secret,
    pub(crate) tls: TlsFiles,
    pub(crate) minimum_tls: MinimumVersion,
    pub(crate) pool_size: usize,
    pub(crate) acquire_timeout: Duration,
    pub(crate) query_timeout: Duration,
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
    /// `None` where the command that runs decides.
    pub(crate) filter: Option<String>,
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

/// What is wrong with the configuration, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SettingsError(String);

impl SettingsError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    fn key(key: &str, problem: impl fmt::Display) -> Self {
        Self(format!("{key}: {problem} (in the file, or as {})", variable(key)))
    }
}

/// The variable that sets a key.
fn variable(key: &str) -> String {
    format!("MUSTER__{}", key.to_uppercase().replace('.', "__"))
}

impl Settings {
    /// Reads the configuration from a file, if one is named, and from variables.
    pub(crate) fn load(
        file: Option<&Path>,
        variables: Option<HashMap<String, String>>,
    ) -> Result<Self, SettingsError> {
        Self::read(file, variables)?.check()
    }

    /// Reads and checks only what a connection to NATS needs.
    pub(crate) fn load_nats(
        file: Option<&Path>,
        variables: Option<HashMap<String, String>>,
    ) -> Result<Nats, SettingsError> {
        let raw = Self::read(file, variables)?;
        let environment = raw.environment()?;
        raw.nats.check(TlsPolicy::new(environment, raw.require_tls))
    }

    /// The policy and what it says of each NATS server, for a report; `None` when not even these can be read.
    pub(crate) fn verdicts(
        file: Option<&Path>,
        variables: Option<HashMap<String, String>>,
    ) -> Option<(TlsPolicy, Vec<Result<ServerUrl, ServersError>>)> {
        let raw = Self::read(file, variables).ok()?;
        let policy = TlsPolicy::new(raw.environment.parse().ok()?, raw.require_tls);
        Some((policy, Servers::verdicts(raw.nats.urls, policy)))
    }

    fn read(file: Option<&Path>, variables: Option<HashMap<String, String>>) -> Result<Raw, SettingsError> {
        let mut sources = Config::builder().add_source(File::from_str(DEFAULTS, FileFormat::Toml));
        if let Some(file) = file {
            sources = sources.add_source(File::from(file).format(FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix("MUSTER")
            .prefix_separator("__")
            .separator("__")
            .source(variables);
        sources
            .add_source(environment)
            .build()
            .and_then(Config::try_deserialize)
            .map_err(|error| SettingsError(format!("the configuration is wrong: {error}")))
    }

    /// Every file that certificates and secrets are read from.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let secret = match &self.nats.auth {
            AuthFrom::Nothing => None,
            AuthFrom::UserPassword(_, secret)
            | AuthFrom::Token(secret)
            | AuthFrom::NKey(secret)
            | AuthFrom::Credentials(secret) => Some(secret),
        };
        let secrets = secret.into_iter().chain([&self.database.url]).filter_map(|secret| match secret {
            Secret::Value(_) => None,
            Secret::File { path, .. } => Some(path.clone()),
        });
        let certificates = [&self.nats.tls, &self.database.tls]
            .map(|files| [files.ca.clone(), files.certificate.clone(), files.key.clone()]);
        secrets.chain(certificates.into_iter().flatten().flatten()).collect()
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNats {
    #[serde(deserialize_with = "list")]
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

#[derive(Deserialize)]
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

#[derive(Deserialize)]
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

/// A list in the file; in a variable its elements are parted by commas.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        More(Vec<String>),
        One(String),
    }
    Ok(match OneOrMore::deserialize(deserializer)? {
        OneOrMore::More(list) => list,
        OneOrMore::One(text) => {
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        }
    })
}

impl Raw {
    fn environment(&self) -> Result<Environment, SettingsError> {
        let parsed = self.environment.parse();
        parsed
            .map_err(|error| SettingsError::key("environment", format!("{:?} is {error}", self.environment)))
    }

    fn check(self) -> Result<Settings, SettingsError> {
        let environment = self.environment()?;
        let policy = TlsPolicy::new(environment, self.require_tls);
        Ok(Settings {
            environment,
            policy,
            nats: self.nats.check(policy)?,
            database: self.database.check()?,
            events: Events {
                batch: bounded("events.batch", self.events.batch, 1..=2000)?,
                in_flight: bounded("events.in_flight", self.events.in_flight, 1..=16)?,
                max_deliveries: bounded("events.max_deliveries", self.events.max_deliveries, 1..=1000)?,
                max_bytes: max_bytes("events.max_bytes", self.events.max_bytes)?,
                max_clock_skew: clock_skew("events.max_clock_skew_ms", self.events.max_clock_skew_ms)?,
                remember: bounded("events.remember_days", self.events.remember_days, 1..=3650)
                    .map(|days: u32| Duration::from_hours(24).saturating_mul(days))?,
            },
            service: Service {
                max_in_flight: bounded("service.max_in_flight", self.service.max_in_flight, 1..=4096)?,
                deadline: millis("service.deadline_ms", self.service.deadline_ms, 100..=60_000)?,
            },
            limits: Limits {
                community_per_second: rate("limits.community_per_second", self.limits.community_per_second)?,
                community_burst: rate("limits.community_burst", self.limits.community_burst)?,
                caller_per_second: rate("limits.caller_per_second", self.limits.caller_per_second)?,
                caller_burst: rate("limits.caller_burst", self.limits.caller_burst)?,
                callers: bounded("limits.callers", self.limits.callers, 1..=1_000_000)?,
            },
            http: self.http.address.parse().map_err(|_| {
                SettingsError::key(
                    "http.address",
                    format!("{:?} is not an address: write ip:port", self.http.address),
                )
            })?,
            log: Log {
                json: match self.log.format.as_str() {
                    "auto" => environment == Environment::Production,
                    "json" => true,
                    "text" => false,
                    other => {
                        return Err(SettingsError::key(
                            "log.format",
                            format!("{other:?} is not auto, json or text"),
                        ));
                    }
                },
                filter: self.log.filter,
            },
            traces: self.traces.check(policy)?,
            startup: millis("startup.wait_ms", self.startup.wait_ms, 0..=86_400_000)?,
            shutdown: millis("shutdown.deadline_ms", self.shutdown.deadline_ms, 100..=600_000)?,
        })
    }
}

impl RawTraces {
    fn check(self, policy: TlsPolicy) -> Result<Option<Traces>, SettingsError> {
        const KEY: &str = "traces.endpoint";
        let sample_percent = bounded("traces.sample_percent", self.sample_percent, 0..=100)?;
        let Some(text) = self.endpoint else { return Ok(None) };
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
        let auth = match (self.user, password, token, nkey, credentials) {
            (None, None, None, None, None) => AuthFrom::Nothing,
            (Some(user), Some(password), None, None, None) => AuthFrom::UserPassword(user, password),
            (None, None, Some(token), None, None) => AuthFrom::Token(token),
            (None, None, None, Some(nkey), None) => AuthFrom::NKey(nkey),
            (None, None, None, None, Some(credentials)) => AuthFrom::Credentials(credentials),
            _ => {
                return Err(SettingsError::key(
                    "nats",
                    "give one of user with password_file, token_file, nkey_file or credentials_file, or none of them",
                ));
            }
        };
        Ok(Nats {
            servers: Servers::parse(&self.urls, policy)
                .map_err(|error| SettingsError::key("nats.urls", error))?,
            tls: files("nats", self.ca_file, self.certificate_file, self.key_file)?,
            minimum_tls: minimum("nats.minimum_tls", &self.minimum_tls)?,
            tls_first: self.tls_first,
            auth,
            give_up_after: millis("nats.give_up_after_ms", self.give_up_after_ms, 1000..=86_400_000)?,
        })
    }
}

impl RawDatabase {
    fn check(self) -> Result<Database, SettingsError> {
        let url = secret("database.url", self.url, "database.url_file", self.url_file)?.ok_or_else(|| {
            SettingsError::key(
                "database.url_file",
                "is not set: name a file that holds postgres://user:password@host:5432/database?sslmode=verify-full",
            )
        })?;
        Ok(Database {
            url,
            tls: files("database", self.ca_file, self.certificate_file, self.key_file)?,
            minimum_tls: minimum("database.minimum_tls", &self.minimum_tls)?,
            pool_size: bounded("database.pool_size", self.pool_size, 2..=500)?,
            acquire_timeout: millis("database.acquire_timeout_ms", self.acquire_timeout_ms, 10..=60_000)?,
            query_timeout: millis("database.query_timeout_ms", self.query_timeout_ms, 100..=60_000)?,
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
    value_key: &str,
    value: Option<SecretString>,
    file_key: &'static str,
    path: Option<PathBuf>,
) -> Result<Option<Secret>, SettingsError> {
    match (value, path) {
        (Some(_), Some(_)) => {
            Err(SettingsError::key(value_key, format!("is set, and so is {file_key}: set one")))
        }
        (Some(value), None) => Ok(Some(Secret::Value(value))),
        (None, Some(path)) => Ok(Some(Secret::File { key: file_key, path })),
        (None, None) => Ok(None),
    }
}

fn bounded<T: TryFrom<i64>>(key: &str, value: i64, allowed: RangeInclusive<i64>) -> Result<T, SettingsError> {
    let refused = || {
        SettingsError::key(
            key,
            format!("{value} is out of range: write {} to {}", allowed.start(), allowed.end()),
        )
    };
    if !allowed.contains(&value) {
        return Err(refused());
    }
    T::try_from(value).map_err(|_| refused())
}

fn millis(key: &str, value: i64, allowed: RangeInclusive<i64>) -> Result<Duration, SettingsError> {
    bounded(key, value, allowed).map(Duration::from_millis)
}

fn max_bytes(key: &str, value: i64) -> Result<usize, SettingsError> {
    let (least, most) = (*MAX_BYTES.start(), *MAX_BYTES.end());
    usize::try_from(value)
        .ok()
        .filter(|bytes| MAX_BYTES.contains(bytes))
        .ok_or_else(|| SettingsError::key(key, format!("{value} is out of range: write {least} to {most}")))
}

fn clock_skew(key: &str, value: i64) -> Result<MaxClockSkew, SettingsError> {
    let (least, most) = (MaxClockSkew::MIN.get().as_millis(), MaxClockSkew::MAX.get().as_millis());
    let skew = u64::try_from(value).ok().map(Duration::from_millis).and_then(MaxClockSkew::new);
    skew.ok_or_else(|| SettingsError::key(key, format!("{value} is out of range: write {least} to {most}")))
}

fn rate(key: &str, value: i64) -> Result<u32, SettingsError> {
    bounded(key, value, 1..=1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let mut all = HashMap::from([
            ("MUSTER__NATS__URLS".to_owned(), "tls://nats-1:4222, tls://nats-2:4222".to_owned()),
            ("MUSTER__DATABASE__URL".to_owned(), "postgres://muster:hunter2@db/muster".to_owned()),
        ]);
        all.extend(variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        Settings::load(None, Some(all))
    }

    #[test]
    fn production_is_the_default() {
        let settings = load(&[]).unwrap();
        assert_eq!(settings.environment, Environment::Production);
        assert_eq!(settings.policy.to_string(), "required: production");
        assert_eq!(settings.nats.servers.as_slice().len(), 2);
        assert!(settings.log.json && settings.log.filter.is_none());
        let asked = load(&[("MUSTER__LOG__FILTER", "debug")]).unwrap();
        assert_eq!(asked.log.filter.as_deref(), Some("debug"));
    }

    #[test]
    fn a_wrong_key_is_named() {
        let wrong = [
            (("MUSTER__NATS__URSL", "tls://a:4222"), "ursl"),
            (("MUSTER__ENVIRONMENT", "prod"), "prod"),
            (("MUSTER__DATABASE__POOL_SIZE", "many"), "pool_size"),
            (("MUSTER__DATABASE__POOL_SIZE", "0"), "2 to 500"),
            (("MUSTER__EVENTS__BATCH", "5000"), "MUSTER__EVENTS__BATCH"),
            (("MUSTER__EVENTS__MAX_BYTES", "4194305"), "1024 to 4194304"),
            (("MUSTER__EVENTS__MAX_CLOCK_SKEW_MS", "999"), "1000 to 86400000"),
            (("MUSTER__HTTP__ADDRESS", "8080"), "ip:port"),
            (("MUSTER__NATS__MINIMUM_TLS", "1.1"), "1.1"),
            (("MUSTER__NATS__KEY_FILE", "/k"), "certificate_file"),
            (("MUSTER__NATS__USER", "worker"), "password_file"),
            (("MUSTER__LIMITS__CALLERS", "-1"), "limits.callers"),
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
        let variables = HashMap::from([
            ("MUSTER__NATS__URLS".to_owned(), "tls://a,nats://u:hunter2@b,ws://c".to_owned()),
            ("MUSTER__REQUIRE_TLS".to_owned(), "true".to_owned()),
            ("MUSTER__ENVIRONMENT".to_owned(), "test".to_owned()),
        ]);
        let (policy, verdicts) = Settings::verdicts(None, Some(variables)).unwrap();
        assert_eq!(policy.to_string(), "required: configured");
        assert_eq!(verdicts.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false]);
        let settings = load(&[
            ("MUSTER__NATS__CREDENTIALS_FILE", "/s/creds"),
            ("MUSTER__NATS__CA_FILE", "/s/ca"),
            ("MUSTER__DATABASE__CA_FILE", "/s/db-ca"),
        ]);
        let files: Vec<PathBuf> = ["/s/creds", "/s/ca", "/s/db-ca"].map(PathBuf::from).to_vec();
        assert_eq!(settings.unwrap().files(), files);
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
    fn no_secret_is_shown() {
        let settings =
            load(&[("MUSTER__NATS__USER", "worker"), ("MUSTER__NATS__PASSWORD", "hunter2")]).unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn a_file_is_read_and_a_variable_wins() {
        let path = std::env::temp_dir().join(format!("muster-settings-{}.toml", std::process::id()));
        std::fs::write(&path, "[nats]\nurls = [\"tls://a:4222\"]\n[events]\nbatch = 7\nin_flight = 9\n")
            .unwrap();
        let variables = HashMap::from([
            ("MUSTER__DATABASE__URL".to_owned(), "postgres://db/muster".to_owned()),
            ("MUSTER__EVENTS__BATCH".to_owned(), "8".to_owned()),
        ]);
        let settings = Settings::load(Some(&path), Some(variables)).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!((settings.events.batch, settings.events.in_flight), (8, 9));
    }
}
