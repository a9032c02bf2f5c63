//! Whatever stands in the database's URL: where TLS is required nothing weaker passes, and no text repeats a password.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use muster_domain::{Leniency, TlsPolicy, TlsReason};
use muster_storage::StoreConfig;
use rustls::{ClientConfig, RootCertStore};
use secrecy::SecretString;

/// What a zero byte stands for. No message may hold it: none quotes a value, nor a name that is not a plain word. As a host
/// it is refused for its tilde.
const PASSWORD: &str = "hunter2~canary";

static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS");
    Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
});

fuzz_target!(|url: &str| {
    let url = url.replace('\0', PASSWORD);
    for policy in [TlsPolicy::Required(TlsReason::Production), TlsPolicy::Optional(Leniency::Development)]
    {
        let secret = SecretString::from(url.as_str());
        match StoreConfig::new(&secret, policy, Some(Arc::clone(&TLS))) {
            Ok(config) => {
                assert!(config.is_encrypted() || !policy.is_required());
                let shown = format!("{config:?}");
                assert!(!shown.contains(PASSWORD), "{shown}");
                for (host, alone) in config.each_host() {
                    assert_eq!(alone.is_encrypted(), config.is_encrypted());
                    assert!(!host.is_empty());
                }
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
