//! The servers that the policy allows.

use std::fmt;
use std::str::FromStr;

use async_nats::ServerAddr;
use muster_domain::TlsPolicy;

/// The most servers of one list.
pub const MAX_SERVERS: usize = 64;

/// One server's address: scheme, host and port. It never holds credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(ServerAddr);

impl ServerUrl {
    /// Holds every URL of a list to the policy. Where TLS is required, only `tls://`, `nats+tls://` and `wss://` pass;
    /// where it is optional, `nats://`, `ws://` and a bare `host:4222` do too.
    ///
    /// # Errors
    /// [`ServersError`] names the worst URL, without its credentials, and what to write instead.
    pub fn list<T: AsRef<str>>(
        urls: impl IntoIterator<Item = T>,
        policy: TlsPolicy,
    ) -> Result<Vec<Self>, ServersError> {
        let urls: Vec<T> = urls.into_iter().take(MAX_SERVERS.saturating_add(1)).collect();
        match urls.len() {
            0 => return Err(ServersError::Empty),
            1..=MAX_SERVERS => {}
            _ => return Err(ServersError::TooMany),
        }
        let (servers, refused): (Vec<_>, Vec<_>) =
            Self::verdicts(&urls, policy).into_iter().partition(Result::is_ok);
        match refused.into_iter().filter_map(Result::err).min_by_key(ServersError::rank) {
            Some(worst) => Err(worst),
            None => Ok(servers.into_iter().flatten().collect()),
        }
    }

    /// The verdict of the policy on every URL of a list, in its order, for a report. [`ServerUrl::list`] takes a list only when
    /// every URL passes.
    pub fn verdicts<T: AsRef<str>>(
        urls: impl IntoIterator<Item = T>,
        policy: TlsPolicy,
    ) -> Vec<Result<Self, ServersError>> {
        (1..).zip(urls).map(|(position, url)| Self::pass(position, url.as_ref(), policy)).collect()
    }

    /// Reads one URL and holds it to the policy.
    fn pass(position: usize, text: &str, policy: TlsPolicy) -> Result<Self, ServersError> {
        let (url, credentials) = Self::read(position, text)?;
        // The policy goes before the credentials: a URL that breaks both is refused for what is worse.
        if policy.is_required() && !url.is_tls() {
            return Err(ServersError::Plaintext { position, url, policy });
        }
        if credentials {
            return Err(ServersError::Credentials { position, url });
        }
        Ok(url)
    }

    /// Reads one URL, and whether it held credentials.
    fn read(position: usize, text: &str) -> Result<(Self, bool), ServersError> {
        let text = text.trim();
        // async-nats knows no `nats+tls`, and takes a bare host as `nats`.
        let normal = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("nats+tls") => format!("tls://{rest}"),
            Some(_) => text.to_owned(),
            None => format!("nats://{text}"),
        };
        // Why a URL does not parse is not passed on: the parser may quote a piece of a password.
        let unreadable = || ServersError::Unreadable { position };
        let address = ServerAddr::from_str(&normal).map_err(|_| unreadable())?;
        if address.host().is_empty() || address.port() == 0 {
            return Err(unreadable());
        }
        let credentials = address.username().is_some() || address.password().is_some();
        let host = match address.host() {
            v6 if v6.contains(':') => format!("[{v6}]"),
            host => host.to_owned(),
        };
        let bare = format!("{}://{host}:{}", address.scheme(), address.port());
        Ok((Self(ServerAddr::from_str(&bare).map_err(|_| unreadable())?), credentials))
    }

    /// Whether only TLS is spoken to it.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.0.scheme(), "tls" | "wss")
    }

    /// Its host name or address.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host()
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port()
    }

    pub(crate) fn address(&self) -> ServerAddr {
        self.0.clone()
    }

    /// The same address over TLS: what to write instead.
    fn over_tls(&self) -> String {
        let scheme = if self.0.is_websocket() { "wss" } else { "tls" };
        self.to_string().split_once("://").map_or_else(String::new, |(_, rest)| format!("{scheme}://{rest}"))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = (self.0.scheme(), self.0.host(), self.0.port());
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerUrl({self})")
    }
}

/// Why a list of servers was refused. No message holds credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServersError {
    /// No server at all.
    #[error("no NATS server is given: write at least one, such as tls://nats.example:4222")]
    Empty,
    /// More than [`MAX_SERVERS`].
    #[error("more than {MAX_SERVERS} NATS servers are given: a few of the cluster's are enough")]
    TooMany,
    /// Not a URL, or of another scheme.
    #[error(
        "NATS server {position} of the list is not a URL that can be used (its text is not shown, it may hold a \
         password): write tls://host:port or wss://host:port"
    )]
    Unreadable {
        /// Its place in the list, from 1.
        position: usize,
    },
    /// Plaintext where TLS is required.
    #[error(
        "NATS server {position} of the list, {url}, is plaintext, but TLS is {policy}: write {} and check that the \
         server speaks TLS", .url.over_tls()
    )]
    Plaintext {
        /// Its place in the list, from 1.
        position: usize,
        /// The server.
        url: ServerUrl,
        /// The policy it breaks.
        policy: TlsPolicy,
    },
    /// Credentials in a URL.
    #[error(
        "NATS server {position} of the list, {url}, has credentials in its URL, where they end up in logs: take them out \
         and give them by their own settings"
    )]
    Credentials {
        /// Its place in the list, from 1.
        position: usize,
        /// The server.
        url: ServerUrl,
    },
}

impl ServersError {
    /// Which of several errors of one list is reported: the lowest.
    const fn rank(&self) -> u8 {
        match self {
            Self::Empty | Self::TooMany => 0,
            Self::Unreadable { .. } => 1,
            Self::Plaintext { .. } => 2,
            Self::Credentials { .. } => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_domain::{Leniency, TlsReason};
    use proptest::prelude::*;

    use super::*;

    const REQUIRED: TlsPolicy = TlsPolicy::Required(TlsReason::Production);
    const OPTIONAL: TlsPolicy = TlsPolicy::Optional(Leniency::Development);

    fn parse(urls: &[&str], policy: TlsPolicy) -> Result<Vec<String>, String> {
        ServerUrl::list(urls, policy)
            .map(|servers| servers.iter().map(ToString::to_string).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn servers_accepted_where_tls_is_required() {
        for (given, taken) in [
            ("tls://a:4222", "tls://a:4222"),
            ("TLS://A.example", "tls://A.example:4222"),
            ("nats+tls://a:4223", "tls://a:4223"),
            ("NATS+TLS://a", "tls://a:4222"),
            ("wss://a", "wss://a:443"),
            ("wss://a:8443/path?token=s3cret", "wss://a:8443"),
            ("tls://[::1]:4222", "tls://[::1]:4222"),
            (" tls://10.0.0.1 ", "tls://10.0.0.1:4222"),
        ] {
            assert_eq!(parse(&[given], REQUIRED), Ok(vec![taken.to_owned()]), "{given}");
        }
    }

    #[test]
    fn servers_refused_where_tls_is_required() {
        for given in [
            "nats://a:4222",
            "NATS://a",
            "ws://a:80",
            "a:4222",
            "a",
            "[::1]:4222",
            "127.0.0.1",
            "http://a",
            "tls:/a",
            "",
            " ",
            "tls://",
            "nats+ws://a",
            "nats+tls+tls://a",
            "tls//a",
            "tls:a",
        ] {
            assert!(parse(&["tls://b", given], REQUIRED).is_err(), "{given}");
        }
    }

    #[test]
    fn one_plaintext_url_among_many_is_named_without_its_password() {
        let error = parse(&["tls://a", "nats://user:s3cret@b:4222", "wss://c"], REQUIRED).unwrap_err();
        assert!(error.contains("nats://b:4222") && error.contains("tls://b:4222"), "{error}");
        assert!(error.contains("server 2") && error.contains("required: production"), "{error}");
        assert!(!error.contains("s3cret") && !error.contains("user"), "{error}");
        let error = parse(&["ws://t0ken@b:80"], REQUIRED).unwrap_err();
        assert!(error.contains("write wss://b:80") && !error.contains("t0ken"), "{error}");
    }

    #[test]
    fn nothing_repeats_a_password() {
        for given in [
            "tls://user:s3cret@a",
            "tls://s3cret@a",
            "nats://user:s3cret",
            "tls://user:s3/cret@a",
            "s3cret@a:1:2",
            "nats+tls://user:s3cret@a",
            "user:s3cret@a:4222",
            "tls://a?password=s3cret",
            "tls://u:s3%cret@[::1",
        ] {
            for policy in [REQUIRED, OPTIONAL] {
                let shown = match ServerUrl::list([given], policy) {
                    Ok(servers) => format!("{servers:?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                assert!(!shown.contains("s3") && !shown.contains("cret"), "{given}: {shown}");
            }
        }
    }

    #[test]
    fn servers_accepted_where_tls_is_optional() {
        assert_eq!(
            parse(&["a", "nats://b:1", "ws://c", "tls://d"], OPTIONAL),
            Ok(["nats://a:4222", "nats://b:1", "ws://c:80", "tls://d:4222"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn a_verdict_for_every_server() {
        let urls = ["tls://a", "nats://user:s3cret@b", "?", "tls://user:s3cret@c"];
        let shown: Vec<String> = ServerUrl::verdicts(urls, REQUIRED)
            .into_iter()
            .map(|verdict| verdict.map_or_else(|error| error.to_string(), |url| url.to_string()))
            .collect();
        assert_eq!(shown[0], "tls://a:4222");
        assert!(shown[1].contains("server 2") && shown[1].contains("plaintext"), "{shown:?}");
        assert!(shown[2].contains("server 3") && shown[3].contains("credentials in its URL"), "{shown:?}");
        assert!(!shown.concat().contains("s3cret"), "{shown:?}");
    }

    #[test]
    fn the_size_of_a_list() {
        assert_eq!(ServerUrl::list(std::iter::empty::<&str>(), OPTIONAL).unwrap_err(), ServersError::Empty);
        assert!(ServerUrl::list(["tls://a"; MAX_SERVERS], REQUIRED).is_ok());
        assert_eq!(
            ServerUrl::list(std::iter::repeat("tls://a"), REQUIRED).unwrap_err(),
            ServersError::TooMany
        );
    }

    proptest! {
        #[test]
        fn nothing_but_tls_passes_whatever_is_given(given: String, scheme in "(tls|nats|ws|wss|nats\\+tls)?(://)?") {
            if let Ok(servers) = ServerUrl::list([format!("{scheme}{given}")], REQUIRED) {
                for server in servers {
                    prop_assert!(server.is_tls());
                    let shown = server.to_string();
                    prop_assert!(shown.starts_with("tls://") || shown.starts_with("wss://"));
                    prop_assert!(!shown.contains('@'));
                    prop_assert!(matches!(server.address().scheme(), "tls" | "wss"));
                }
            }
        }
    }
}
