//! The gate: servers, the policy that they have passed, and the certificates to speak to them with.

use std::sync::{Arc, Once};

use muster_domain::TlsPolicy;

use super::server::{ServerUrl, ServersError};
use crate::tls::material::{Material, MaterialError, MinimumVersion, TlsFiles};

/// Servers that have passed the TLS policy, with the trusted authorities and the own certificate. A connection needs one, and
/// only [`Transport::new`] makes one.
#[derive(Debug, Clone)]
pub struct Transport {
    servers: Vec<ServerUrl>,
    policy: TlsPolicy,
    material: Option<Arc<Material>>,
}

impl Transport {
    /// Holds the servers to the policy and reads the certificates.
    ///
    /// # Errors
    /// [`TransportError`] names the URL that is refused, without its credentials, or the file that is not in order.
    pub fn new<T: AsRef<str>>(
        urls: impl IntoIterator<Item = T>,
        policy: TlsPolicy,
        files: &TlsFiles,
        minimum: MinimumVersion,
    ) -> Result<Self, TransportError> {
        let servers = ServerUrl::list(urls, policy)?;
        let needs_material = servers.iter().any(ServerUrl::is_tls) || *files != TlsFiles::default();
        let material = needs_material.then(|| Material::load(files, minimum).map(Arc::new)).transpose()?;
        Ok(Self { servers, policy, material })
    }

    /// Whether only TLS is spoken. False when one of the servers may be spoken to in plaintext.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.servers.iter().all(ServerUrl::is_tls)
    }

    /// The servers.
    #[must_use]
    pub fn servers(&self) -> &[ServerUrl] {
        &self.servers
    }

    /// The trusted authorities and the own certificate; `None` where no server speaks TLS.
    #[must_use]
    pub fn material(&self) -> Option<&Arc<Material>> {
        self.material.as_ref()
    }

    /// A transport to each of the servers alone, to test each of them.
    #[must_use]
    pub fn each(&self) -> Vec<(ServerUrl, Self)> {
        let alone = |url: &ServerUrl| (url.clone(), Self { servers: vec![url.clone()], ..self.clone() });
        self.servers.iter().map(alone).collect()
    }

    /// Warns of plaintext, once in a process however often it connects.
    pub(super) fn warn_of_plaintext(&self) {
        static WARNED: Once = Once::new();
        if let Some(plaintext) = self.servers.iter().find(|server| !server.is_tls()) {
            WARNED.call_once(|| {
                tracing::warn!(
                    nats.server = %plaintext,
                    tls.policy = %self.policy,
                    "NATS is spoken to in plaintext: anyone in the path can read and change what is sent"
                );
            });
        }
    }
}

/// Why there is no transport.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The list of servers is refused.
    #[error(transparent)]
    Servers(#[from] ServersError),
    /// The certificates are refused.
    #[error(transparent)]
    Material(#[from] MaterialError),
}

#[cfg(test)]
mod tests {
    use muster_domain::{Leniency, TlsReason};

    use super::*;

    #[test]
    fn one_plaintext_server_is_allowed_or_refused_and_nothing_hides_it() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem())
            .unwrap();
        let files = TlsFiles { ca: Some(ca), ..TlsFiles::default() };
        let new = |urls: &[&str], policy| Transport::new(urls, policy, &files, MinimumVersion::Tls13);
        let (required, optional) =
            (TlsPolicy::Required(TlsReason::Configured), TlsPolicy::Optional(Leniency::Test));
        let mixed = new(&["tls://a", "b"], optional).unwrap();
        assert!(!mixed.is_tls() && mixed.material().is_some());
        let alone: Vec<bool> = mixed.each().iter().map(|(_, transport)| transport.is_tls()).collect();
        assert_eq!(alone, [true, false]);
        assert!(matches!(new(&["tls://a", "b"], required), Err(TransportError::Servers(_))));
        for policy in [required, optional] {
            assert!(new(&["tls://a", "wss://b"], policy).unwrap().is_tls());
        }
        let plain = Transport::new(["a"], optional, &TlsFiles::default(), MinimumVersion::Tls13).unwrap();
        assert!(!plain.is_tls() && plain.material().is_none());
    }
}
