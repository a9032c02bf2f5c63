//! Whatever stands in a list of servers: where TLS is required nothing else passes, and no text repeats a password.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use muster_domain::{Leniency, TlsPolicy, TlsReason};
use muster_messaging::connection::{MAX_SERVERS, ServerUrl};

/// Stands where a password stands, and nowhere that may be shown.
const PASSWORD: &str = "hunter2canary";

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    required: bool,
    servers: Vec<Server<'a>>,
}

#[derive(Arbitrary, Debug)]
enum Server<'a> {
    /// Any text.
    Any(&'a str),
    /// A list's worth of the same.
    Repeated(&'a str, u8),
    /// A password between any two texts. The `@` after it keeps it from being the host.
    WithPassword(&'a str, &'a str),
}

fuzz_target!(|input: Input<'_>| {
    let policy = match input.required {
        true => TlsPolicy::Required(TlsReason::Production),
        false => TlsPolicy::Optional(Leniency::Development),
    };
    let urls: Vec<String> = input
        .servers
        .iter()
        .flat_map(|server| match server {
            Server::Any(text) => vec![(*text).to_owned()],
            Server::Repeated(text, times) => vec![(*text).to_owned(); usize::from(*times)],
            Server::WithPassword(before, after) => vec![format!("{before}:{PASSWORD}@{after}")],
        })
        .collect();
    // A text that spells the password by itself may put it anywhere.
    let spelt = urls.iter().map(|url| url.to_lowercase().matches(PASSWORD).count()).sum::<usize>();
    let placed = input.servers.iter().filter(|server| matches!(server, Server::WithPassword(..))).count();
    let shows_password = |text: String| spelt == placed && text.to_lowercase().contains(PASSWORD);

    let verdicts = ServerUrl::verdicts(&urls, policy);
    assert_eq!(verdicts.len(), urls.len());
    let all_pass = (1..=MAX_SERVERS).contains(&urls.len()) && verdicts.iter().all(Result::is_ok);
    for verdict in &verdicts {
        let shown = match verdict {
            Ok(server) => format!("{server} {server:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shows_password(shown.clone()), "{shown}");
    }
    match ServerUrl::list(&urls, policy) {
        Ok(servers) => {
            assert!(all_pass);
            assert_eq!(servers.len(), urls.len());
            let every_one_is_tls = servers.iter().all(|server| server.is_tls());
            assert!(every_one_is_tls || !policy.is_required());
            for server in &servers {
                let shown = server.to_string();
                let tls = shown.starts_with("tls://") || shown.starts_with("wss://");
                assert!(tls == server.is_tls() && !shown.contains('@'), "{shown}");
                assert!(!server.host().is_empty() && server.port() != 0, "{shown}");
                // What is shown is what is meant: read again, it is the same server.
                let again = ServerUrl::list([&shown], policy).expect("a server that passed passes again");
                assert_eq!(again[0].to_string(), shown);
            }
        }
        Err(error) => {
            assert!(!all_pass);
            let shown = format!("{error} {error:?}");
            assert!(!shows_password(shown.clone()), "{shown}");
        }
    }
});
