//! The database's URL, read as libpq reads it: each of libpq's parameters is honoured, or refused by its name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::ChannelBinding;

use crate::error::Error;

/// The most hosts of one URL.
const MAX_HOSTS: usize = 16;
/// The longest `connect_timeout` of one host, in seconds.
const MAX_CONNECT_TIMEOUT: u64 = 300;
const DEFAULT_PORT: u16 = 5432;
/// The longest name of an unknown parameter that is quoted; libpq's are shorter.
const MAX_QUOTED: usize = 40;

/// What a URL says.
#[derive(Clone)]
pub(crate) struct DatabaseUrl {
    /// In the order in which they are to be tried; at least one.
    pub(crate) hosts: Vec<Host>,
    /// Who connects to which database, and how the socket is kept; without a host.
    pub(crate) login: tokio_postgres::Config,
    pub(crate) sslmode: Option<String>,
    /// Whether the TLS handshake goes first (`sslnegotiation=direct`).
    pub(crate) direct_tls: bool,
    /// Whether the handshake names the host (`sslsni`).
    pub(crate) sni: bool,
    /// For each address of each host.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) target: Target,
    /// Whether hosts and their addresses are tried in random order (`load_balance_hosts=random`).
    pub(crate) random: bool,
    /// The server's settings that `options` asks for.
    pub(crate) options: Vec<(String, String)>,
}

/// One of the hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) place: Place,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A name or an address, which is what the certificate must be for, and where to find it if not by that name.
    Tcp { name: String, address: Option<IpAddr> },
    /// The directory of a socket of this machine.
    Socket(PathBuf),
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::Tcp { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Tcp { name, .. } => write!(f, "{name}:{}", self.port),
            Place::Socket(directory) => write!(f, "{}:{}", directory.display(), self.port),
        }
    }
}

/// Which servers are wanted (`target_session_attrs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Target {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl Target {
    const ALL: [Self; 6] =
        [Self::Any, Self::ReadWrite, Self::ReadOnly, Self::Primary, Self::Standby, Self::PreferStandby];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }
}

/// What becomes of a parameter.
enum Rule {
    /// It is honoured.
    Read,
    /// It may have these values, which say what Muster does anyway; else this is what to do instead.
    Only(&'static [&'static str], &'static str),
    /// It is refused, and this is what to do instead.
    Never(&'static str),
}

/// Every parameter of libpq 18. A name that is not here is unknown.
const PARAMETERS: &[(&str, Rule)] = &[
    ("host", Rule::Read),
    ("hostaddr", Rule::Read),
    ("port", Rule::Read),
    ("dbname", Rule::Read),
    ("user", Rule::Read),
    ("password", Rule::Read),
    ("passfile", Rule::Never("write the password into the URL, and keep the URL in database.url_file")),
    (
        "require_auth",
        Rule::Never("write channel_binding=require, which takes no server without SCRAM over its own TLS"),
    ),
    ("channel_binding", Rule::Read),
    ("connect_timeout", Rule::Read),
    ("client_encoding", Rule::Read),
    ("options", Rule::Read),
    ("application_name", Rule::Read),
    ("fallback_application_name", Rule::Read),
    ("keepalives", Rule::Read),
    ("keepalives_idle", Rule::Read),
    ("keepalives_interval", Rule::Read),
    ("keepalives_count", Rule::Read),
    ("tcp_user_timeout", Rule::Read),
    (
        "replication",
        Rule::Only(&["false", "off", "no", "0"], "leave it out: a replication connection answers no queries"),
    ),
    ("gssencmode", Rule::Only(&["disable", "prefer"], "leave it out, and write sslmode=verify-full")),
    ("sslmode", Rule::Read),
    ("requiressl", Rule::Never("write sslmode=verify-full")),
    ("sslnegotiation", Rule::Read),
    ("sslcompression", Rule::Only(&["0"], "leave it out: TLS is not compressed")),
    ("sslcert", Rule::Never("set database.certificate_file")),
    ("sslkey", Rule::Never("set database.key_file")),
    ("sslkeylogfile", Rule::Never("leave it out: TLS keys are not written to files")),
    ("sslpassword", Rule::Never("set database.key_file to a key without a password")),
    (
        "sslcertmode",
        Rule::Only(&["allow"], "set database.certificate_file, or leave it unset to show no certificate"),
    ),
    ("sslrootcert", Rule::Never("set database.ca_file, or leave it unset to trust the system's authorities")),
    ("sslcrl", Rule::Never("leave it out, and set database.ca_file to authorities that are not revoked")),
    ("sslcrldir", Rule::Never("leave it out, and set database.ca_file to authorities that are not revoked")),
    ("sslsni", Rule::Read),
    ("requirepeer", Rule::Never("connect by TCP with sslmode=verify-full, which proves who the server is")),
    ("ssl_min_protocol_version", Rule::Never("set database.minimum_tls")),
    ("ssl_max_protocol_version", Rule::Never("leave it out: the newest version that both know is used")),
    ("min_protocol_version", Rule::Only(&["3.0"], "leave it out: Muster speaks protocol 3.0")),
    (
        "max_protocol_version",
        Rule::Only(&["3.0", "3.2", "latest"], "leave it out: Muster speaks protocol 3.0"),
    ),
    ("krbsrvname", Rule::Never("give a password, or a client certificate in database.certificate_file")),
    ("gsslib", Rule::Never("give a password, or a client certificate in database.certificate_file")),
    (
        "gssdelegation",
        Rule::Only(&["0"], "give a password, or a client certificate in database.certificate_file"),
    ),
    ("scram_client_key", Rule::Never("give the password")),
    ("scram_server_key", Rule::Never("give the password")),
    ("service", Rule::Never("write out what the service's entry says")),
    ("servicefile", Rule::Never("write out what the service's entry says")),
    ("oauth_issuer", Rule::Never("give a password, or a client certificate in database.certificate_file")),
    ("oauth_client_id", Rule::Never("give a password, or a client certificate in database.certificate_file")),
    (
        "oauth_client_secret",
        Rule::Never("give a password, or a client certificate in database.certificate_file"),
    ),
    ("oauth_scope", Rule::Never("give a password, or a client certificate in database.certificate_file")),
    ("target_session_attrs", Rule::Read),
    ("load_balance_hosts", Rule::Read),
];

fn refused<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Configuration(why.into()))
}

impl DatabaseUrl {
    /// Reads a URL, or keywords with values.
    ///
    /// # Errors
    /// [`Error::Configuration`], which names what is wrong and never quotes a value that may be a secret.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut given = Given::default();
        let text = text.trim();
        match ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
            Some(rest) => given.read_url(rest)?,
            None if text.contains("://") => return refused(format!("it has another scheme: {FORM}")),
            None => given.read_keywords(text)?,
        }
        given.build()
    }
}

const FORM: &str = "write postgres://user:password@host:5432/database?sslmode=verify-full";

/// The parameters that were given, each once.
#[derive(Default)]
struct Given {
    values: HashMap<&'static str, String>,
    /// The name of the last.
    last: Option<&'static str>,
}

impl Given {
    fn set(&mut self, name: &str, value: String) -> Result<(), Error> {
        let Some((name, rule)) = PARAMETERS.iter().find(|(known, _)| *known == name) else {
            // Any other text may be a piece of a password, and whatever follows one.
            let is_word = self.last != Some("password")
                && name.len() <= MAX_QUOTED
                && name.bytes().all(|it| it.is_ascii_alphabetic() || it == b'_');
            return match name {
                "ssl" => refused("ssl is not a parameter of PostgreSQL: write sslmode=verify-full"),
                "keepalives_retries" => {
                    refused("keepalives_retries is not a parameter of PostgreSQL: write keepalives_count")
                }
                "" => refused("a parameter has no name"),
                _ if is_word => refused(format!(
                    "{name} is not a parameter of a PostgreSQL URL: leave it out; a setting of the server goes into \
                     options, as in options=-c%20name%3Dvalue"
                )),
                _ => refused(
                    "it has a parameter whose name is none of PostgreSQL's: if it is a piece of a password, write the \
                     password's ?, &, = and spaces as %3F, %26, %3D and %20",
                ),
            };
        };
        self.last = Some(name);
        // As in libpq, what is empty was not given.
        if value.is_empty() {
            return Ok(());
        }
        match rule {
            Rule::Read => {}
            Rule::Only(values, _) if values.contains(&value.as_str()) => return Ok(()),
            Rule::Only(_, instead) => {
                return refused(format!("{name} has an unsupported value: {instead}"));
            }
            Rule::Never(instead) => {
                return refused(format!("{name} is not taken from the URL: {instead}"));
            }
        }
        if self.values.insert(name, value).is_some() {
            return refused(format!("it sets {name} twice: write it once"));
        }
        Ok(())
    }

    /// `user:password@host:port,host:port/database?name=value&name=value`.
    fn read_url(&mut self, text: &str) -> Result<(), Error> {
        // As libpq does it: the credentials end with the first @, if no / comes before it.
        let end =
            text.find(['@', '/']).filter(|at| text.get(*at..).is_some_and(|rest| rest.starts_with('@')));
        let (credentials, rest) = match end.and_then(|end| text.split_at_checked(end)) {
            Some((credentials, rest)) => (Some(credentials), rest.strip_prefix('@').unwrap_or(rest)),
            None => (None, text),
        };
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        // What stands behind such a mark would be read, and shown, as a host or a database.
        if rest.contains('@') || parameters.contains('@') {
            return refused(
                "it has an @ that does not end user and password: write %40 for it, and %2F for a / in the password",
            );
        }
        if let Some(credentials) = credentials {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            if user.contains(['?', '=', '&']) {
                return refused("the user's name has a ?, = or &: write %3F, %3D or %26");
            }
            self.set("user", decoded("user", user)?)?;
            self.set("password", decoded("password", password)?)?;
        }
        let (hosts, database) = rest.split_once('/').unwrap_or((rest, ""));
        let mut names = Vec::new();
        let mut ports = Vec::new();
        for (number, host) in (1..).zip(hosts.split(',')) {
            let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
                Some(Some((name, port))) => (name, port),
                Some(None) => return refused(format!("host {number} has a [ without its ]")),
                None => host.split_at_checked(host.find(':').unwrap_or(host.len())).unwrap_or((host, "")),
            };
            let port = match (port.strip_prefix(':'), port) {
                (Some(port), _) => port,
                (None, "") => "",
                (None, _) => {
                    return refused(format!("host {number} has something between its ] and its port"));
                }
            };
            names.push(decoded("host", name)?);
            ports.push(decoded("port", port)?);
        }
        if names.iter().any(|name| !name.is_empty()) {
            self.set("host", names.join(","))?;
        }
        if ports.iter().any(|port| !port.is_empty()) {
            self.set("port", ports.join(","))?;
        }
        self.set("dbname", decoded("dbname", database)?)?;
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let Some((name, value)) = parameter.split_once('=') else {
                return refused(
                    "one of its parameters has no value: write name=value, and %26 for an & in a value",
                );
            };
            let name = decoded("a parameter's name", name)?;
            let value = decoded(if is_known(&name) { &name } else { "a parameter" }, value)?;
            self.set(&name, value)?;
        }
        Ok(())
    }

    /// `name=value name = 'another value'`, with a backslash before a quote, a backslash or a space in a value.
    fn read_keywords(&mut self, text: &str) -> Result<(), Error> {
        let mut rest = text;
        while !rest.is_empty() {
            let Some((name, after)) = rest.split_once('=') else {
                return refused(format!("it has a keyword without a value: {FORM}"));
            };
            let name = name.trim();
            if name.contains(char::is_whitespace) {
                return refused("a keyword has no =, or a value with spaces is not in single quotes");
            }
            let mut letters = after.trim_start().chars();
            let mut value = String::new();
            let quoted = letters.as_str().starts_with('\'');
            if quoted {
                letters.next();
            }
            let mut ended = !quoted;
            while let Some(letter) = letters.next() {
                match letter {
                    '\'' if quoted => {
                        ended = true;
                        break;
                    }
                    '\\' => value.extend(letters.next()),
                    letter if !quoted && letter.is_whitespace() => break,
                    letter => value.push(letter),
                }
            }
            if !ended {
                return refused("a value has no closing quote: write \\' for a quote in it");
            }
            self.set(name, value)?;
            rest = letters.as_str().trim_start();
        }
        Ok(())
    }

    fn take(&mut self, name: &'static str) -> Option<String> {
        self.values.remove(name)
    }

    /// One of some words.
    fn word<T>(
        &mut self,
        name: &'static str,
        words: impl IntoIterator<Item = (&'static str, T)>,
    ) -> Result<Option<T>, Error> {
        let Some(given) = self.take(name) else { return Ok(None) };
        let mut known = Vec::new();
        for (word, meant) in words {
            if word == given {
                return Ok(Some(meant));
            }
            known.push(word);
        }
        refused(format!("{name} is none of {}", known.join(", ")))
    }

    /// A whole number. As in libpq, nought and less stand for the system's own value, which is `None`.
    fn number(&mut self, name: &'static str) -> Result<Option<Option<u32>>, Error> {
        let Some(given) = self.take(name) else { return Ok(None) };
        match given.trim().parse::<i64>() {
            Ok(number) if number <= 0 => Ok(Some(None)),
            Ok(number) if u32::try_from(number).is_ok() => Ok(Some(u32::try_from(number).ok())),
            _ => refused(format!("{name} is not a whole number, or too large")),
        }
    }

    fn build(mut self) -> Result<DatabaseUrl, Error> {
        let hosts = self.hosts()?;
        if self
            .take("client_encoding")
            .is_some_and(|it| !["utf8", "utf-8", "unicode"].contains(&&*it.to_lowercase()))
        {
            return refused("client_encoding has an unsupported value: leave it out, Muster uses UTF8");
        }
        let connect_timeout = match self.take("connect_timeout").map(|it| it.trim().parse::<u64>()) {
            None => None,
            Some(Ok(seconds)) if (1..=MAX_CONNECT_TIMEOUT).contains(&seconds) => {
                Some(Duration::from_secs(seconds))
            }
            Some(_) => {
                return refused(format!(
                    "connect_timeout is not one of 1 to {MAX_CONNECT_TIMEOUT} seconds, which each host may take"
                ));
            }
        };
        let direct_tls =
            self.word("sslnegotiation", [("postgres", false), ("direct", true)])?.unwrap_or(false);
        let sni = self.word("sslsni", [("1", true), ("0", false)])?.unwrap_or(true);
        let random =
            self.word("load_balance_hosts", [("disable", false), ("random", true)])?.unwrap_or(false);
        let target = self
            .word("target_session_attrs", Target::ALL.map(|target| (target.as_str(), target)))?
            .unwrap_or_default();
        let options = self.take("options").map(|it| options(&it)).transpose()?.unwrap_or_default();
        let sslmode = self.take("sslmode");
        let login = self.login()?;
        Ok(DatabaseUrl { hosts, login, sslmode, direct_tls, sni, connect_timeout, target, random, options })
    }

    fn login(&mut self) -> Result<tokio_postgres::Config, Error> {
        let mut login = tokio_postgres::Config::new();
        if let Some(user) = self.take("user") {
            login.user(user);
        }
        if let Some(password) = self.take("password") {
            login.password(password);
        }
        if let Some(database) = self.take("dbname") {
            login.dbname(database);
        }
        let fallback = self.take("fallback_application_name");
        login.application_name(
            self.take("application_name").or(fallback).unwrap_or_else(|| "muster".to_owned()),
        );
        if let Some(binding) = self.word(
            "channel_binding",
            [
                ("disable", ChannelBinding::Disable),
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
            ],
        )? {
            login.channel_binding(binding);
        }
        let seconds = |number: u32| Duration::from_secs(number.into());
        login.keepalives(self.number("keepalives")? != Some(None));
        if let Some(idle) = self.number("keepalives_idle")?.unwrap_or(Some(30)) {
            login.keepalives_idle(seconds(idle));
        }
        if let Some(interval) = self.number("keepalives_interval")?.flatten() {
            login.keepalives_interval(seconds(interval));
        }
        if let Some(count) = self.number("keepalives_count")?.flatten() {
            login.keepalives_retries(count);
        }
        // In milliseconds, as in libpq.
        if let Some(timeout) = self.number("tcp_user_timeout")?.unwrap_or(Some(20_000)) {
            login.tcp_user_timeout(Duration::from_millis(timeout.into()));
        }
        Ok(login)
    }

    fn hosts(&mut self) -> Result<Vec<Host>, Error> {
        let list = |value: Option<String>| -> Vec<String> {
            value.map(|it| it.split(',').map(|part| part.trim().to_owned()).collect()).unwrap_or_default()
        };
        let (names, addresses, ports) =
            (list(self.take("host")), list(self.take("hostaddr")), list(self.take("port")));
        let count = names.len().max(addresses.len());
        if count == 0 {
            return refused(format!("it names no host: {FORM}"));
        }
        if count > MAX_HOSTS {
            return refused(format!("it names {count} hosts: write at most {MAX_HOSTS}"));
        }
        if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
            return refused(format!(
                "it has {} hosts and {} of hostaddr: write as many",
                names.len(),
                addresses.len()
            ));
        }
        if ports.len() > 1 && ports.len() != count {
            return refused(format!(
                "it has {count} hosts and {} ports: write one port, or as many",
                ports.len()
            ));
        }
        let mut hosts = Vec::with_capacity(count);
        for index in 0..count {
            let number = index.saturating_add(1);
            let port = ports.get(index).or_else(|| ports.first()).map_or("", String::as_str);
            let port = match port {
                "" => DEFAULT_PORT,
                port => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                    Error::Configuration(format!(
                        "the port of host {number} is not a number from 1 to 65535; if it is a piece of the password, \
                         write %2F, %3A, %3F and %40 for its /, :, ? and @"
                    ))
                })?,
            };
            let address = match addresses.get(index).map_or("", String::as_str) {
                "" => None,
                address => Some(address.parse::<IpAddr>().map_err(|_| {
                    Error::Configuration(format!("the hostaddr of host {number} is not an IP address"))
                })?),
            };
            let name = names.get(index).map_or("", String::as_str);
            let place = match (name, address) {
                ("", None) => return refused(format!("host {number} has no name")),
                // The certificate must then be for the address.
                ("", Some(address)) => Place::Tcp { name: address.to_string(), address: Some(address) },
                (name, None) if name.starts_with('/') => Place::Socket(name.into()),
                (name, address) if is_host(name) => Place::Tcp { name: name.to_owned(), address },
                _ => {
                    return refused(format!(
                        "host {number} is neither a name nor an address; if it is a piece of the password, write %2F, \
                         %3A, %3F and %40 for its /, :, ? and @"
                    ));
                }
            };
            hosts.push(Host { place, port });
        }
        Ok(hosts)
    }
}

fn is_known(name: &str) -> bool {
    PARAMETERS.iter().any(|(known, _)| *known == name)
}

fn is_host(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
        || name.len() <= 253 && name.bytes().all(|it| it.is_ascii_alphanumeric() || b"-._".contains(&it))
}

/// Replaces each `%` with its two digits.
fn decoded(what: &str, text: &str) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit =
            |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match digit(rest.next()).zip(digit(rest.next())) {
            Some((0, 0)) => return refused(format!("{what} holds %00")),
            Some((high, low)) => bytes.push((high << 4) | low),
            None => return refused(format!("{what} has a % without two digits after it: write %25 for it")),
        }
    }
    String::from_utf8(bytes)
        .map_err(|_| Error::Configuration(format!("{what} is not UTF-8 after its % are read")))
}

/// Reads `-c name=value` and `--name=value`, parted by spaces; a backslash keeps a space in a value.
fn options(text: &str) -> Result<Vec<(String, String)>, Error> {
    const WRITTEN: &str =
        "options holds something else than -c name=value: write each setting of the server so";
    let mut words = Vec::new();
    let mut word = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.extend(letters.next()),
            letter if letter.is_whitespace() => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(setting), _) => setting.to_owned(),
            (None, Some("")) => words.next().unwrap_or_default(),
            (None, Some(setting)) => setting.to_owned(),
            (None, None) => return refused(WRITTEN),
        };
        let Some((name, value)) = setting.split_once('=') else { return refused(WRITTEN) };
        // The server reads a dash in a name as it reads an underscore.
        let name = name.to_lowercase().replace('-', "_");
        let is_name = name.bytes().all(|it| it.is_ascii_alphanumeric() || b"_.".contains(&it));
        if name.is_empty() || !is_name {
            return refused(WRITTEN);
        }
        settings.push((name, value.to_owned()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> DatabaseUrl {
        DatabaseUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refusal(text: &str) -> String {
        match DatabaseUrl::parse(text) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{text} is taken"),
        }
    }

    /// PQconndefaults of PostgreSQL 18.
    const LIBPQ: &str = "service servicefile user password passfile channel_binding connect_timeout dbname host hostaddr \
        port client_encoding options application_name fallback_application_name keepalives keepalives_idle \
        keepalives_interval keepalives_count tcp_user_timeout sslmode sslnegotiation sslcompression sslcert sslkey \
        sslcertmode sslpassword sslrootcert sslcrl sslcrldir sslsni requirepeer require_auth min_protocol_version \
        max_protocol_version ssl_min_protocol_version ssl_max_protocol_version gssencmode krbsrvname gsslib \
        gssdelegation replication target_session_attrs load_balance_hosts scram_client_key scram_server_key \
        oauth_issuer oauth_client_id oauth_client_secret oauth_scope sslkeylogfile requiressl";

    #[test]
    fn each_parameter_of_libpq_is_honoured_or_refused_by_its_name() {
        let mut known = 0;
        for name in LIBPQ.split_whitespace() {
            known += 1;
            let rule = PARAMETERS.iter().find(|(known, _)| *known == name).map(|(_, rule)| rule);
            let value = "hunter2/:@";
            let url = format!("postgres://h/d?{name}=hunter2%2F%3A%40");
            match rule.unwrap_or_else(|| panic!("{name} is unknown")) {
                // Words, numbers and lists refuse it, free text takes it.
                Rule::Read => {
                    if let Err(error) = DatabaseUrl::parse(&url) {
                        let said = error.to_string();
                        assert!(said.contains(name) && !said.contains("hunter2"), "{said}");
                    }
                }
                Rule::Only(values, instead) => {
                    assert!(!values.contains(&value));
                    let said = refusal(&url);
                    assert!(
                        said.contains(name) && said.contains(instead) && !said.contains("hunter2"),
                        "{said}"
                    );
                    for value in *values {
                        parse(&format!("postgres://h/d?{name}={value}"));
                        parse(&format!("host=h {name}={value}"));
                    }
                }
                Rule::Never(instead) => {
                    let said = refusal(&url);
                    assert!(
                        said.contains(name) && said.contains(instead) && !said.contains("hunter2"),
                        "{said}"
                    );
                }
            }
        }
        assert_eq!(known, PARAMETERS.len());
        for (unknown, said) in [
            ("sslmod=require", "sslmod is not a parameter"),
            ("pgbouncer=true", "pgbouncer is not a parameter"),
            ("schema=public", "schema is not a parameter"),
            ("statement_timeout=5", "statement_timeout is not a parameter"),
            ("ssl=true", "ssl is not a parameter of PostgreSQL: write sslmode=verify-full"),
            ("keepalives_retries=3", "keepalives_count"),
            ("HOST=x", "HOST is not a parameter"),
        ] {
            for url in
                [format!("postgres://u:hunter2@h/d?{unknown}"), format!("password=hunter2 host=h {unknown}")]
            {
                let message = refusal(&url);
                assert!(message.contains(said) && !message.contains("hunter2"), "{url}: {message}");
            }
        }
    }

    fn hosts(text: &str) -> Vec<String> {
        parse(text)
            .hosts
            .iter()
            .map(|host| match host.place {
                Place::Tcp { address: Some(address), .. } => format!("{host}={address}"),
                _ => host.to_string(),
            })
            .collect()
    }

    #[test]
    fn hosts_and_ports_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("postgres://a/d", "a:5432"),
            ("postgresql://u:p@a:1,b:2/d", "a:1 b:2"),
            ("postgres://a,b:2,c/d", "a:5432 b:2 c:5432"),
            ("postgres://u@a,b/d?port=7", "a:7 b:7"),
            ("postgres:///d?host=a,b&port=1,2", "a:1 b:2"),
            ("postgres:///d?host=a,b&port=,2", "a:5432 b:2"),
            ("postgres://[::1]:7,[fe80::2]/d", "[::1]:7 [fe80::2]:5432"),
            ("postgres://localhost:7/d?hostaddr=127.0.0.1", "localhost:7=127.0.0.1"),
            ("postgres:///d?hostaddr=127.0.0.1,::1&host=a,b", "a:5432=127.0.0.1 b:5432=::1"),
            ("postgres:///d?hostaddr=127.0.0.1", "127.0.0.1:5432=127.0.0.1"),
            ("postgres:///d?host=a,b&hostaddr=,::1", "a:5432 b:5432=::1"),
            ("postgres://%2Frun%2Fpostgresql/d", "/run/postgresql:5432"),
            ("postgres:///d?host=/run/postgresql,b&port=7", "/run/postgresql:7 b:7"),
            ("host=a,b port='1,2' user=u", "a:1 b:2"),
            ("host = a port =7\nuser= u", "a:7"),
            ("hostaddr=10.0.0.1 host=''", "10.0.0.1:5432=10.0.0.1"),
        ] {
            assert_eq!(hosts(text).join(" "), expected, "{text}");
        }
        for (text, said) in [
            ("postgres:///d", "names no host"),
            ("postgres://a,/d", "host 2 has no name"),
            ("postgres://a:x/d", "port of host 1"),
            ("postgres://a:0/d", "port of host 1"),
            ("postgres://a:65536/d", "port of host 1"),
            ("postgres://a,b,c/d?port=1,2", "3 hosts and 2 ports"),
            ("postgres://a,b/d?hostaddr=::1", "2 hosts and 1 of hostaddr"),
            ("postgres://a/d?hostaddr=b", "hostaddr of host 1"),
            ("postgres://[::1/d", "a [ without its ]"),
            ("postgres://[::1]x/d", "between its ] and its port"),
            ("postgres://a b/d", "host 1 is neither"),
            ("postgres://a/d?host=b", "host twice"),
            ("postgres://a:1/d?port=2", "port twice"),
            ("postgres://a/d?dbname=e", "dbname twice"),
            ("mysql://a/d", "another scheme"),
            ("muster", "a keyword without a value"),
            ("host=a user='u", "no closing quote"),
        ] {
            assert!(refusal(text).contains(said), "{text}: {}", refusal(text));
        }
        let many = vec!["h"; MAX_HOSTS + 1].join(",");
        assert!(refusal(&format!("postgres://{many}/d")).contains("at most 16"));
    }

    #[test]
    fn credentials_are_decoded_and_a_piece_of_a_password_is_never_taken_for_something_else() {
        for (text, user, password) in [
            ("postgres://u:p%40%2F%3A@h/d", "u", "p@/:"),
            ("postgres://u:p?&=:#@h/d", "u", "p?&=:#"),
            ("postgres://h/d?user=u&password=p%26", "u", "p&"),
            (r"host=h user='a b' password='it\'s \\ '", "a b", r"it's \ "),
            (r"host=h user=a\ b password=p\'", "a b", "p'"),
        ] {
            let login = parse(text).login;
            assert_eq!(login.get_user(), Some(user), "{text}");
            assert_eq!(login.get_password(), Some(password.as_bytes()), "{text}");
        }
        for text in [
            "postgres://u:hun/ter2@h/d",
            "postgres://u:12/ter2@h/d",
            "postgres://u:hun@ter2@h/d",
            "postgres://u:hun@ter2/3@h/d",
            "postgres://u:hun@h?ter2=x@h/d",
            "postgres://h?password=hun@ter2/d",
            "postgres://u:hun%zzter2@h/d",
            "postgres://u:%00ter2@h/d",
            "postgres://u:p@h/d?password=hun&ter2",
            "postgres://u:p@h/d?password=hun&ter2=x",
            "host=h password=hun ter2",
            "host=h password=hun ter2=x",
            "postgres://u@h/d?password=hun&horse=x",
            "host=h password=hun horse=x",
        ] {
            let said = refusal(text);
            let pieces = ["ter2", "hun", "horse"];
            assert!(!pieces.iter().any(|piece| said.contains(piece)), "{text}: {said}");
        }
    }

    #[test]
    fn values_are_read_as_libpq_reads_them() {
        let url = parse(
            "postgres://h/d?connect_timeout=7&tcp_user_timeout=1500&keepalives_idle=11&keepalives_interval=5&\
             keepalives_count=4&keepalives=1&target_session_attrs=prefer-standby&load_balance_hosts=random&sslsni=0&\
             sslnegotiation=direct&channel_binding=require&client_encoding=UTF8&fallback_application_name=f",
        );
        assert_eq!(url.connect_timeout, Some(Duration::from_secs(7)));
        assert_eq!(url.login.get_tcp_user_timeout(), Some(&Duration::from_millis(1500)), "not seconds");
        assert_eq!(url.login.get_keepalives_idle(), Duration::from_secs(11));
        assert_eq!(url.login.get_keepalives_interval(), Some(Duration::from_secs(5)));
        assert_eq!(url.login.get_keepalives_retries(), Some(4));
        assert!(url.login.get_keepalives() && url.random && url.direct_tls && !url.sni);
        assert_eq!(url.target, Target::PreferStandby);
        assert_eq!(url.login.get_channel_binding(), ChannelBinding::Require);
        assert_eq!(url.login.get_application_name(), Some("f"));
        let unsaid = parse("postgres://h/d?keepalives=0&tcp_user_timeout=0&sslmode=&application_name=a");
        assert!(!unsaid.login.get_keepalives() && unsaid.login.get_tcp_user_timeout().is_none());
        assert_eq!((unsaid.sslmode, unsaid.login.get_application_name()), (None, Some("a")));
        assert_eq!(parse("host=h").login.get_application_name(), Some("muster"));
        for wrong in ["connect_timeout=0", "connect_timeout=301", "connect_timeout=-1", "connect_timeout=2s"]
        {
            assert!(refusal(&format!("host=h {wrong}")).contains("1 to 300"), "{wrong}");
        }
        assert!(
            refusal("host=h target_session_attrs=master").contains("any, read-write, read-only, primary")
        );
        assert!(refusal("host=h client_encoding=LATIN1").contains("client_encoding"));
    }

    #[test]
    fn options_are_settings_of_the_server() {
        let options = |text: &str| options(text).map_err(|error| error.to_string());
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            options(r"-c work_mem=1MB  -cSearch_Path=a,\ b --lock-timeout=5-6 "),
            Ok(vec![pair("work_mem", "1MB"), pair("search_path", "a, b"), pair("lock_timeout", "5-6")])
        );
        assert_eq!(options(""), Ok(Vec::new()));
        for wrong in ["-e", "-c", "-c name", "name=value", "-c =v", "-c a;b=c"] {
            assert!(options(wrong).unwrap_err().contains("write each setting"), "{wrong}");
        }
    }
}
