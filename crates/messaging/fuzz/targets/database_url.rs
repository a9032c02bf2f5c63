//! Whatever stands in the database's URL: where TLS is required nothing weaker passes, and no text repeats a password.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use muster_domain::{Environment, TlsPolicy, TlsReason};
use muster_storage::StoreConfig;
use rustls::{ClientConfig, RootCertStore};
use secrecy::SecretString;
use tokio_postgres::config::{Host, SslMode};

/// What a zero byte stands for. No message may hold it: none quotes the URL.
const PASSWORD: &str = "hunter2canary";

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS");
    Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
});

fuzz_target!(|url: &str| {
    let url = url.replace('\0', PASSWORD);
    // The driver's own reading, which knows no mode stricter than `require`.
    let read = url.replace("sslmode=verify-full", "sslmode=require").parse::<tokio_postgres::Config>();
    for policy in [TlsPolicy::Required(TlsReason::Production), TlsPolicy::Optional(Environment::Development)]
    {
        let secret = SecretString::from(url.as_str());
        match StoreConfig::new(&secret, policy, Some(Arc::clone(&TLS))) {
            Ok(config) => {
                let read = read.as_ref().expect("what passes is what the driver can read");
                assert!(config.is_encrypted() || !policy.is_required());
                // What the driver would have read in the URL is never overruled in silence.
                match read.get_ssl_mode() {
                    SslMode::Disable => assert!(!config.is_encrypted()),
                    SslMode::Require => assert!(config.is_encrypted()),
                    _ => assert_eq!(config.is_encrypted(), policy.is_required()),
                }
                let named = |text: &str| text.contains(PASSWORD);
                let shown_on_purpose = read.get_dbname().is_some_and(named)
                    || read.get_hosts().iter().any(|host| match host {
                        Host::Tcp(name) => named(name),
                        Host::Unix(path) => named(&path.to_string_lossy()),
                    });
                let shown = format!("{config:?}");
                assert!(shown_on_purpose || !shown.contains(PASSWORD), "{shown}");
                // Without authorities there is nothing to verify against.
                let without = StoreConfig::new(&secret, policy, None);
                assert_eq!(without.is_ok(), !config.is_encrypted());
            }
            Err(error) => {
                let shown = format!("{error} {error:?}");
                assert!(!shown.contains(PASSWORD), "{shown}");
            }
        }
    }
});
