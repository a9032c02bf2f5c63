//! Certificates and keys as a client configuration that rotates in place.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::pem::{self, MAX_PEM, PemError};

/// The most peers whose certificates are remembered, and the most certificates of one chain beside the leaf.
const MAX_PEERS: usize = 64;
const MAX_ISSUERS: usize = 8;

/// Where the certificates lie. Each is read again by [`Material::reload`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that are trusted, in place of the system's. `None` trusts the system's.
    pub ca: Option<PathBuf>,
    /// The client's own certificate chain, leaf first.
    pub certificate: Option<PathBuf>,
    /// The private key of `certificate`.
    pub key: Option<PathBuf>,
}

/// The lowest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MinimumVersion {
    /// TLS 1.2 or 1.3.
    Tls12,
    /// TLS 1.3 only.
    #[default]
    Tls13,
}

/// Trust and identity for TLS connections, rotating without a new [`ClientConfig`].
#[derive(Debug, Clone)]
pub struct Material {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    minimum: MinimumVersion,
    shared: Arc<Shared>,
    config: Arc<ClientConfig>,
}

#[derive(Debug)]
struct Shared {
    current: RwLock<Current>,
    peers: RwLock<BTreeMap<String, Shown>>,
    last_refusal: RwLock<Option<String>>,
    accepted: AtomicU64,
    refused: AtomicU64,
}

/// What a server showed, and by which version of TLS its handshake went through; `None` before it did.
#[derive(Debug)]
struct Shown {
    der: CertificateDer<'static>,
    issuers: Vec<CertificateDer<'static>>,
    version: Option<TlsVersion>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl MinimumVersion {
    const fn version(self) -> TlsVersion {
        match self {
            Self::Tls12 => TlsVersion::Tls12,
            Self::Tls13 => TlsVersion::Tls13,
        }
    }
}

/// Tells of one link's handshakes whether they proved who the server is.
#[derive(Debug, Clone)]
pub(crate) struct Witness {
    proved: Arc<AtomicBool>,
    minimum: TlsVersion,
}

impl Witness {
    /// Forgets what was proved: another attempt begins.
    pub(crate) fn reset(&self) {
        self.proved.store(false, Ordering::Release);
    }

    /// Whether a handshake of this attempt proved who the server is, in a version that is not too old.
    pub(crate) fn has_proof(&self) -> bool {
        self.proved.load(Ordering::Acquire)
    }

    pub(crate) fn saw(&self, version: TlsVersion) {
        if version >= self.minimum {
            self.proved.store(true, Ordering::Release);
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "TLS 1.2",
            Self::Tls13 => "TLS 1.3",
        })
    }
}

/// A server whose certificate was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name or address it was asked for by.
    pub name: String,
    /// The certificate that it showed last.
    pub certificate: Certificate,
    /// The further certificates that it showed with it, at most 8 of them.
    pub issuers: Vec<Certificate>,
    /// By which version of TLS; `None` while no handshake with that certificate has ended.
    pub version: Option<TlsVersion>,
}

/// What one reading of the files gave.
#[derive(Debug, Clone)]
struct Current {
    verifier: Arc<WebPkiServerVerifier>,
    identity: Option<Arc<CertifiedKey>>,
    authorities: Vec<Certificate>,
    own: Vec<Certificate>,
}

impl Material {
    /// Reads the files and makes a client configuration of them.
    ///
    /// # Errors
    /// [`MaterialError`] when a file cannot be read, does not parse, has expired, or key and certificate do not belong
    /// together.
    pub fn load(files: &TlsFiles, minimum: MinimumVersion) -> Result<Self, MaterialError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let current = read(files, &provider, OffsetDateTime::now_utc())?;
        let shared = Arc::new(Shared {
            current: RwLock::new(current),
            peers: RwLock::new(BTreeMap::new()),
            last_refusal: RwLock::new(None),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let versions = match minimum {
            MinimumVersion::Tls12 => &[&TLS13, &TLS12][..],
            MinimumVersion::Tls13 => &[&TLS13],
        };
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(MaterialError::Provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier {
                shared: Arc::clone(&shared),
                witness: None,
            }))
            .with_client_cert_resolver(Arc::new(Identity(Arc::clone(&shared))));
        // A resumed session is not verified again, and would outlive the authorities that vouched for it.
        config.resumption = Resumption::disabled();
        Ok(Self { files: files.clone(), provider, minimum, shared, config: Arc::new(config) })
    }

    /// The client configuration. It stays the same one over every [`reload`](Self::reload): new handshakes use what was
    /// read last.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// The client configuration with a witness of the handshakes that are made by it and by its clones.
    pub(crate) fn witnessed(&self) -> (ClientConfig, Witness) {
        let witness = Witness { proved: Arc::default(), minimum: self.minimum.version() };
        let verifier = Verifier { shared: Arc::clone(&self.shared), witness: Some(witness.clone()) };
        let mut config = self.config.as_ref().clone();
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        (config, witness)
    }

    /// Reads the files again and, if everything about them is in order, uses them for every handshake from now on.
    /// Connections that stand are not touched. Answers whether anything had changed.
    ///
    /// # Errors
    /// As [`Material::load`]; what was in use before stays in use.
    pub fn reload(&self) -> Result<bool, MaterialError> {
        let new = read(&self.files, &self.provider, OffsetDateTime::now_utc())?;
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = new.authorities != current.authorities || new.own != current.own;
        *current = new;
        Ok(changed)
    }

    /// The files that are read.
    #[must_use]
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// The trusted authorities of the CA file; empty where the system's are trusted.
    #[must_use]
    pub fn authorities(&self) -> Vec<Certificate> {
        self.shared.current().authorities
    }

    /// The client's own chain, leaf first; empty without one.
    #[must_use]
    pub fn own(&self) -> Vec<Certificate> {
        self.shared.current().own
    }

    /// The servers that were accepted, each with what it showed last, by name: at most 64.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let peer = |(name, shown): (&String, &Shown)| {
            let certificate = Certificate::parse(&shown.der).ok()?;
            let issuers = shown.issuers.iter().filter_map(|der| Certificate::parse(der).ok()).collect();
            Some(Peer { name: name.clone(), certificate, issuers, version: shown.version })
        };
        peers.iter().filter_map(peer).collect()
    }

    /// Which server was refused last, and why; `None` once a server was accepted after it.
    #[must_use]
    pub fn last_refusal(&self) -> Option<String> {
        self.shared.last_refusal.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many servers' certificates were accepted so far. Every handshake counts, for none is resumed.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Acquire)
    }

    /// How many servers' certificates were refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Acquire)
    }
}

impl Shared {
    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn verifier(&self) -> Arc<WebPkiServerVerifier> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).verifier)
    }
}

fn read(
    files: &TlsFiles,
    provider: &Arc<CryptoProvider>,
    now: OffsetDateTime,
) -> Result<Current, MaterialError> {
    let (roots, authorities) = match &files.ca {
        Some(path) => private_roots(path, now)?,
        None => (system_roots()?, Vec::new()),
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(MaterialError::Roots)?;
    let (identity, own) = match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => {
            let (identity, own) = identity(certificate, key, provider, now)?;
            (Some(Arc::new(identity)), own)
        }
        (None, None) => (None, Vec::new()),
        (Some(_), None) => return Err(MaterialError::Half { given: "certificate", missing: "key" }),
        (None, Some(_)) => return Err(MaterialError::Half { given: "key", missing: "certificate" }),
    };
    Ok(Current { verifier, identity, authorities, own })
}

fn private_roots(
    path: &Path,
    now: OffsetDateTime,
) -> Result<(RootCertStore, Vec<Certificate>), MaterialError> {
    let certificates = pem::read_certificates(&file(path)?).map_err(|cause| pem_error(path, cause))?;
    let mut roots = RootCertStore::empty();
    let mut authorities = Vec::with_capacity(certificates.len());
    for der in certificates {
        let facts = Certificate::parse(&der).map_err(|_| MaterialError::NotX509 { path: path.to_owned() })?;
        // webpki takes a trust anchor for what it is, whatever its dates say.
        if facts.is_valid_at(now) {
            roots.add(der).map_err(|cause| MaterialError::Certificate { path: path.to_owned(), cause })?;
        }
        authorities.push(facts);
    }
    match authorities.first() {
        Some(first) if roots.is_empty() => Err(MaterialError::expired(path, first)),
        _ => Ok((roots, authorities)),
    }
}

fn system_roots() -> Result<RootCertStore, MaterialError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() { Err(MaterialError::NoSystemRoots) } else { Ok(roots) }
}

fn identity(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
    now: OffsetDateTime,
) -> Result<(CertifiedKey, Vec<Certificate>), MaterialError> {
    let chain = pem::read_certificates(&file(certificate)?).map_err(|cause| pem_error(certificate, cause))?;
    let private = pem::read_private_key(&file(key)?).map_err(|cause| pem_error(key, cause))?;
    let facts: Vec<Certificate> = chain
        .iter()
        .map(Certificate::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| MaterialError::NotX509 { path: certificate.to_owned() })?;
    if let Some(bad) = facts.iter().find(|facts| !facts.is_valid_at(now)) {
        return Err(MaterialError::expired(certificate, bad));
    }
    let identity = CertifiedKey::from_der(chain, private, provider).map_err(|cause| MaterialError::Key {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        cause,
    })?;
    Ok((identity, facts))
}

fn file(path: &Path) -> Result<Vec<u8>, MaterialError> {
    let unreadable = |cause| MaterialError::Unreadable { path: path.to_owned(), cause };
    let bound = u64::try_from(MAX_PEM).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(unreadable)?.take(bound).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

fn pem_error(path: &Path, cause: PemError) -> MaterialError {
    MaterialError::Pem { path: path.to_owned(), cause }
}

/// Verifies servers as rustls does, by the authorities that were read last, and remembers whom it accepted.
#[derive(Debug)]
struct Verifier {
    shared: Arc<Shared>,
    witness: Option<Witness>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.shared.verifier().verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        if let Err(error) = &verified {
            self.shared.refused.fetch_add(1, Ordering::AcqRel);
            self.remember_refusal(&server_name.to_str(), error);
            return verified;
        }
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        let name = server_name.to_str().into_owned();
        if peers.len() < MAX_PEERS || peers.contains_key(&name) {
            let issuers =
                intermediates.iter().take(MAX_ISSUERS).map(|der| der.clone().into_owned()).collect();
            peers.insert(name, Shown { der: end_entity.clone().into_owned(), issuers, version: None });
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.count(self.shared.verifier().verify_tls12_signature(message, cert, dss), cert, TlsVersion::Tls12)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.count(self.shared.verifier().verify_tls13_signature(message, cert, dss), cert, TlsVersion::Tls13)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.shared.verifier().supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

impl Verifier {
    /// The signature over the handshake is the last that is checked of a peer: with it, the peer is accepted.
    fn count<T>(
        &self,
        verified: Result<T, rustls::Error>,
        cert: &CertificateDer<'_>,
        version: TlsVersion,
    ) -> Result<T, rustls::Error> {
        match &verified {
            Ok(_) => {
                if let Some(witness) = &self.witness {
                    witness.saw(version);
                }
                self.shared.accepted.fetch_add(1, Ordering::AcqRel);
                *self.shared.last_refusal.write().unwrap_or_else(PoisonError::into_inner) = None;
                let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
                for shown in peers.values_mut().filter(|shown| &shown.der == cert) {
                    shown.version = Some(version);
                }
            }
            Err(error) => {
                self.shared.refused.fetch_add(1, Ordering::AcqRel);
                self.remember_refusal("a server", error);
            }
        }
        verified
    }

    /// Logged when it is not what was refused last: an attempt is repeated every other second.
    fn remember_refusal(&self, name: &str, error: &rustls::Error) {
        let refusal = format!("{name}: {error}");
        let mut last = self.shared.last_refusal.write().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&refusal) {
            tracing::warn!(tls.server = name, error = %error, "a server's certificate is refused");
            *last = Some(refusal);
        }
    }
}

/// Shows servers that ask the certificate that was read last.
#[derive(Debug)]
struct Identity(Arc<Shared>);

impl ResolvesClientCert for Identity {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.current().identity
    }

    fn has_certs(&self) -> bool {
        self.0.current().identity.is_some()
    }
}

/// Why certificates or a key were refused.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// A file could not be read.
    #[error("{} cannot be read: see that it is there and that this user may read it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A file is not the PEM that is needed.
    #[error("{} {cause}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: PemError,
    },
    /// What a PEM section holds is no certificate.
    #[error("{} holds something that is no X.509 certificate: remove it", path.display())]
    NotX509 {
        /// The file.
        path: PathBuf,
    },
    /// A certificate cannot be used.
    #[error("{} holds a certificate that cannot be used", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: rustls::Error,
    },
    /// A certificate is past its end, or before its beginning.
    #[error("{}: the certificate of {subject} is valid from {not_before} to {not_after} only: renew it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// Whose certificate.
        subject: String,
        /// From when it is valid.
        not_before: OffsetDateTime,
        /// Until when it is valid.
        not_after: OffsetDateTime,
    },
    /// The key cannot be used, or is another certificate's.
    #[error("the key of {} does not belong to the certificate of {}", key.display(), certificate.display())]
    Key {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        #[source]
        cause: rustls::Error,
    },
    /// A certificate without a key, or a key without a certificate.
    #[error("a client's {given} is given without its {missing}: give both or neither")]
    Half {
        /// What is given.
        given: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// The system trusts no authority.
    #[error("this system has no trusted authorities: install its CA certificates, or name a CA file")]
    NoSystemRoots,
    /// The authorities cannot be used together.
    #[error("the trusted authorities cannot be used")]
    Roots(#[source] rustls::client::VerifierBuilderError),
    /// The provider cannot speak the versions.
    #[error("the cryptography provider cannot speak the TLS versions asked for")]
    Provider(#[source] rustls::Error),
}

impl MaterialError {
    fn expired(path: &Path, facts: &Certificate) -> Self {
        Self::Expired {
            path: path.to_owned(),
            subject: facts.subject.clone(),
            not_before: facts.not_before,
            not_after: facts.not_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pair {
        certificate: String,
        key: String,
    }

    fn pair(name: &str, until: i32) -> Pair {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    fn write(directory: &Path, ca: &Pair, own: &Pair) -> TlsFiles {
        let files = TlsFiles {
            ca: Some(directory.join("ca.pem")),
            certificate: Some(directory.join("tls.crt")),
            key: Some(directory.join("tls.key")),
        };
        std::fs::write(files.ca.as_ref().unwrap(), &ca.certificate).unwrap();
        std::fs::write(files.certificate.as_ref().unwrap(), &own.certificate).unwrap();
        std::fs::write(files.key.as_ref().unwrap(), &own.key).unwrap();
        files
    }

    #[test]
    fn a_reload_takes_a_good_file_and_refuses_a_bad_one() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, first, second) = (pair("ca", 2100), pair("first", 2100), pair("second", 2100));
        let files = write(directory.path(), &ca, &first);
        let material = Material::load(&files, MinimumVersion::Tls13).unwrap();
        assert_eq!(material.own()[0].names, ["first"]);
        assert!(!material.reload().unwrap(), "nothing changed");

        write(
            directory.path(),
            &ca,
            &Pair { certificate: second.certificate.clone(), key: first.key.clone() },
        );
        assert!(matches!(material.reload(), Err(MaterialError::Key { .. })));
        write(directory.path(), &ca, &pair("old", 2021));
        assert!(matches!(material.reload(), Err(MaterialError::Expired { .. })));
        write(directory.path(), &pair("ca", 2021), &second);
        assert!(matches!(material.reload(), Err(MaterialError::Expired { .. })));
        write(directory.path(), &ca, &Pair { certificate: String::new(), key: second.key.clone() });
        assert!(matches!(material.reload(), Err(MaterialError::Pem { cause: PemError::NoCertificate, .. })));
        std::fs::remove_file(files.key.as_ref().unwrap()).unwrap();
        assert!(material.reload().is_err());
        assert_eq!(material.own()[0].names, ["first"], "the old stays in use");

        write(directory.path(), &ca, &second);
        assert!(material.reload().unwrap());
        assert_eq!(material.own()[0].names, ["second"]);
        let identity = material.config.client_auth_cert_resolver.resolve(&[], &[]).unwrap();
        assert_eq!(
            Certificate::parse(&identity.cert[0]).unwrap().names,
            ["second"],
            "seen by the same config"
        );
    }

    #[test]
    fn half_an_identity_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = write(directory.path(), &pair("ca", 2100), &pair("own", 2100));
        files.key = None;
        assert!(matches!(
            Material::load(&files, MinimumVersion::Tls13),
            Err(MaterialError::Half { given: "certificate", missing: "key" })
        ));
    }

    #[test]
    fn no_message_or_debug_text_shows_a_key() {
        let directory = tempfile::tempdir().unwrap();
        let own = pair("own", 2100);
        let files = write(directory.path(), &pair("ca", 2100), &own);
        let shown = format!("{:?}", Material::load(&files, MinimumVersion::Tls13).unwrap());
        let secret = own.key.lines().nth(1).unwrap();
        assert!(!shown.contains(secret));
    }
}
