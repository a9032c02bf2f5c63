//! Certificates and keys as a client configuration that rotates in place.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, InconsistentKeys, NamedGroup, RootCertStore,
    SignatureScheme,
};
use time::OffsetDateTime;

use super::certificate::Certificate;
use super::file::{self, FileError};
use super::key::{self, KeyKind};
use super::pem::{self, Blocks, MAX_PEM, PemError, Purpose};
use crate::log_budget::LogBudget;

/// The most peers whose certificates are remembered, and the most certificates of one chain beside the leaf.
const MAX_PEERS: usize = 64;
const MAX_ISSUERS: usize = 8;
/// The most log lines a minute about servers whose certificates are refused.
const REFUSALS_PER_MINUTE: u32 = 6;

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
    version: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Shared {
    current: RwLock<Current>,
    peers: RwLock<BTreeMap<String, Shown>>,
    last_refusal: RwLock<Option<String>>,
    refusal_log: LogBudget,
    accepted: AtomicU64,
    refused: AtomicU64,
}

/// A group of key exchange, by its name in IANA's registry of TLS groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyExchange(NamedGroup);

impl KeyExchange {
    /// Whether traffic recorded today stays secret from a later quantum computer.
    #[must_use]
    pub const fn is_post_quantum(self) -> bool {
        matches!(
            self.0,
            NamedGroup::MLKEM512
                | NamedGroup::MLKEM768
                | NamedGroup::MLKEM1024
                | NamedGroup::X25519MLKEM768
                | NamedGroup::secp256r1MLKEM768
        )
    }
}

impl fmt::Display for KeyExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// The certificates that a server showed, and the TLS version of its handshake; `None` before that succeeds.
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

/// Records whether one link's handshakes proved the server's identity.
#[derive(Debug, Clone)]
pub(crate) struct Witness {
    proved: Arc<AtomicBool>,
    minimum: TlsVersion,
}

impl Witness {
    /// Forgets the proof, since another attempt begins.
    pub(crate) fn reset(&self) {
        self.proved.store(false, Ordering::Release);
    }

    /// Whether a handshake of this attempt proved the server's identity, in a version that is not too old.
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
    /// The name or address that it was asked for by.
    pub name: String,
    /// The certificate that it showed last.
    pub certificate: Certificate,
    /// The further certificates that it showed with it, at most 8 of them.
    pub issuers: Vec<Certificate>,
    /// The TLS version; `None` while no handshake with that certificate has ended.
    pub version: Option<TlsVersion>,
}

/// The contents of one file. Its text form counts the blocks by their kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileContents {
    /// The file.
    pub path: PathBuf,
    /// The purpose that it was read for.
    pub purpose: Purpose,
    /// How many certificates it holds.
    pub certificates: usize,
    /// How many private keys it holds.
    pub keys: usize,
    /// How many blocks of parameters it holds.
    pub parameters: usize,
}

impl fmt::Display for FileContents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |number: usize, what: &str| match number {
            0 => None,
            1 => Some(format!("1 {what}")),
            _ => Some(format!("{number} {what}s")),
        };
        let (certificates, keys) = (counted(self.certificates, "certificate"), counted(self.keys, "key"));
        let (used, beside) = match self.purpose {
            Purpose::Authorities | Purpose::Chain => (certificates, keys),
            Purpose::Key => (keys, certificates),
        };
        f.write_str(&used.unwrap_or_default())?;
        let unused: Vec<_> =
            beside.into_iter().chain(counted(self.parameters, "block of parameters")).collect();
        if unused.is_empty() { Ok(()) } else { write!(f, "; not used here: {}", unused.join(", ")) }
    }
}

/// The result of reading the files once.
#[derive(Debug, Clone)]
struct Current {
    verifier: Arc<WebPkiServerVerifier>,
    identity: Option<Arc<CertifiedKey>>,
    authorities: Vec<Certificate>,
    own: Vec<Certificate>,
    contents: Vec<FileContents>,
    unused: Vec<Unused>,
}

/// A certificate that cannot be used, or not yet, in a file with others that can.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: the certificate of {} in line {line} {why}", path.display(), certificate.subject)]
pub struct Unused {
    /// The file.
    pub path: PathBuf,
    /// The line that it begins in.
    pub line: usize,
    /// The certificate.
    pub certificate: Certificate,
    /// Why.
    pub why: WhyUnused,
}

/// Why a certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyUnused {
    /// It is past its end.
    Expired {
        /// From when it is valid.
        not_before: OffsetDateTime,
        /// Until when it is valid.
        not_after: OffsetDateTime,
    },
    /// It is not yet valid by this machine's clock. An authority is trusted all the same, so that nothing need be done when its
    /// time comes; the certificates that it signs have dates of their own.
    Early {
        /// From when it is valid.
        not_before: OffsetDateTime,
    },
    /// It is an authority's, and signatures of its kind of key cannot be verified.
    Key(KeyKind),
}

impl Unused {
    /// Whether it is kept for a time that is still to come.
    #[must_use]
    pub const fn is_for_later(&self) -> bool {
        matches!(self.why, WhyUnused::Early { .. })
    }
}

impl fmt::Display for WhyUnused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { not_before, not_after } => write!(
                f,
                "is valid from {not_before} to {not_after} only: it is passed over, and may be taken out"
            ),
            Self::Early { not_before } => write!(
                f,
                "is not valid before {not_before}: it is kept for then; check that this machine's clock is right"
            ),
            Self::Key(kind) => {
                write!(
                    f,
                    "has a key of {kind}, which is not supported: nothing that it has signed is accepted"
                )
            }
        }
    }
}

impl Material {
    /// Reads the files and makes a client configuration of them.
    ///
    /// # Errors
    /// [`MaterialError`] when a file cannot be read whole, when every authority has expired, when the leaf is not within its dates, or when
    /// key and certificate do not belong together. Unusable certificates are in [`Material::unused`].
    pub fn load(files: &TlsFiles, minimum: MinimumVersion) -> Result<Self, MaterialError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let current = read(files, &provider, OffsetDateTime::now_utc())?;
        let shared = Arc::new(Shared {
            current: RwLock::new(current),
            peers: RwLock::new(BTreeMap::new()),
            last_refusal: RwLock::new(None),
            refusal_log: LogBudget::new(REFUSALS_PER_MINUTE),
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
        let config = Arc::new(config);
        Ok(Self { files: files.clone(), provider, minimum, shared, config, version: Arc::default() })
    }

    /// The client configuration. It stays the same one over every [`reload`](Self::reload): new handshakes use what was
    /// read last.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// The key exchange that every handshake offers, all that the cryptography provider has, the preferred first.
    #[must_use]
    pub fn key_exchange(&self) -> Vec<KeyExchange> {
        let groups = &self.config.crypto_provider().kx_groups;
        groups.iter().map(|group| KeyExchange(group.name())).collect()
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
    /// Connections that stand are not touched. Returns whether anything had changed.
    ///
    /// # Errors
    /// As [`Material::load`]; what was in use before stays in use.
    pub fn reload(&self) -> Result<bool, MaterialError> {
        let new = read(&self.files, &self.provider, OffsetDateTime::now_utc())?;
        let mut current = self.shared.current.write().unwrap_or_else(PoisonError::into_inner);
        let changed = new.authorities != current.authorities || new.own != current.own;
        *current = new;
        if changed {
            self.version.fetch_add(1, Ordering::AcqRel);
        }
        Ok(changed)
    }

    /// How often they had changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
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

    /// The certificates of [`Material::authorities`] and of [`Material::own`] without those that are of no use.
    #[must_use]
    pub fn in_use(&self) -> (Vec<Certificate>, Vec<Certificate>) {
        let Current { authorities, own, unused, .. } = self.shared.current();
        let is_unused = |one: &Certificate| {
            unused.iter().any(|unused| unused.certificate == *one && !unused.is_for_later())
        };
        let used = |all: Vec<Certificate>| -> Vec<Certificate> {
            all.into_iter().filter(|one| !is_unused(one)).collect()
        };
        (used(authorities), used(own))
    }

    /// The contents of each file.
    #[must_use]
    pub fn contents(&self) -> Vec<FileContents> {
        self.shared.current().contents
    }

    /// Certificates of the files that cannot be used, or not yet. Report them.
    #[must_use]
    pub fn unused(&self) -> Vec<Unused> {
        self.shared.current().unused
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
    let mut reader = FileReader { now, contents: Vec::new(), unused: Vec::new() };
    let (roots, authorities) = match &files.ca {
        Some(path) => reader.private_roots(path)?,
        None => (system_roots()?, Vec::new()),
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(MaterialError::Roots)?;
    let (identity, own) = match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => {
            let (identity, own) = reader.identity(certificate, key, provider)?;
            (Some(Arc::new(identity)), own)
        }
        (None, None) => (None, Vec::new()),
        (Some(_), None) => return Err(MaterialError::Half { given: "certificate", missing: "key" }),
        (None, Some(_)) => return Err(MaterialError::Half { given: "key", missing: "certificate" }),
    };
    let FileReader { contents, unused, .. } = reader;
    Ok(Current { verifier, identity, authorities, own, contents, unused })
}

/// Reads all files once, and collects what they held and what of it cannot be used.
struct FileReader {
    now: OffsetDateTime,
    contents: Vec<FileContents>,
    unused: Vec<Unused>,
}

impl FileReader {
    fn blocks(&mut self, path: &Path, purpose: Purpose) -> Result<Blocks, MaterialError> {
        let bytes = file::read(path, MAX_PEM)
            .map_err(|cause| MaterialError::Unreadable { path: path.to_owned(), cause })?;
        let blocks = pem::read(&bytes, purpose)
            .map_err(|cause| MaterialError::Pem { path: path.to_owned(), cause })?;
        self.contents.push(FileContents {
            path: path.to_owned(),
            purpose,
            certificates: blocks.certificates.len(),
            keys: blocks.keys.len(),
            parameters: blocks.parameters,
        });
        Ok(blocks)
    }

    fn unused(&mut self, path: &Path, line: usize, certificate: &Certificate, why: WhyUnused) {
        self.unused.push(Unused { path: path.to_owned(), line, certificate: certificate.clone(), why });
    }

    fn private_roots(&mut self, path: &Path) -> Result<(RootCertStore, Vec<Certificate>), MaterialError> {
        let certificates = self.blocks(path, Purpose::Authorities)?.certificates;
        let mut roots = RootCertStore::empty();
        let mut authorities = Vec::with_capacity(certificates.len());
        let mut unsupported = None;
        for (line, der) in certificates {
            let facts = Certificate::parse(&der)
                .map_err(|_| MaterialError::NotX509 { path: path.to_owned(), line })?;
            // webpki takes a trust anchor for what it is, whatever its dates say.
            if facts.has_expired_at(self.now) {
                self.unused(path, line, &facts, out_of_date(&facts, self.now));
            } else if !facts.key.can_verify() {
                unsupported.get_or_insert_with(|| facts.key.clone());
                self.unused(path, line, &facts, WhyUnused::Key(facts.key.clone()));
            } else {
                // The file does not change when its time comes, and would not be read again.
                if !facts.is_valid_at(self.now) {
                    self.unused(path, line, &facts, out_of_date(&facts, self.now));
                }
                roots.add(der).map_err(|cause| MaterialError::Certificate {
                    path: path.to_owned(),
                    line,
                    cause,
                })?;
            }
            authorities.push(facts);
        }
        match (authorities.first(), unsupported) {
            (_, Some(kind)) if roots.is_empty() => {
                Err(MaterialError::AuthorityKey { path: path.to_owned(), kind })
            }
            (Some(first), None) if roots.is_empty() => Err(MaterialError::expired(path, first)),
            _ => Ok((roots, authorities)),
        }
    }

    fn identity(
        &mut self,
        certificate: &Path,
        key: &Path,
        provider: &CryptoProvider,
    ) -> Result<(CertifiedKey, Vec<Certificate>), MaterialError> {
        let (lines, chain): (Vec<usize>, Vec<CertificateDer<'static>>) =
            self.blocks(certificate, Purpose::Chain)?.certificates.into_iter().unzip();
        let Some((_, private)) = self.blocks(key, Purpose::Key)?.keys.pop() else {
            return Err(MaterialError::Pem { path: key.to_owned(), cause: PemError::NoKey });
        };
        let mut facts = Vec::with_capacity(chain.len());
        for (line, der) in lines.into_iter().zip(&chain) {
            let found = Certificate::parse(der)
                .map_err(|_| MaterialError::NotX509 { path: certificate.to_owned(), line })?;
            match (found.is_valid_at(self.now), facts.is_empty()) {
                (true, _) => {}
                (false, true) => return Err(MaterialError::expired(certificate, &found)),
                // Whoever verifies the chain may know another path from the leaf.
                (false, false) => self.unused(certificate, line, &found, out_of_date(&found, self.now)),
            }
            facts.push(found);
        }
        let kind = KeyKind::of_private(&private);
        let signing = provider.key_provider.load_private_key(private).map_err(|_| {
            let path = key.to_owned();
            match kind.can_sign() {
                true => MaterialError::BrokenKey { path, kind },
                false => MaterialError::UnsupportedKey { path, kind },
            }
        })?;
        let identity = CertifiedKey::new(chain, signing);
        match identity.keys_match() {
            // The provider knows the public half of every key that it takes; should it not, the server tells.
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok((identity, facts)),
            Err(cause) => Err(MaterialError::mismatch(certificate, key, &identity, cause)),
        }
    }
}

fn out_of_date(certificate: &Certificate, now: OffsetDateTime) -> WhyUnused {
    let Certificate { not_before, not_after, .. } = *certificate;
    if certificate.has_expired_at(now) {
        WhyUnused::Expired { not_before, not_after }
    } else {
        WhyUnused::Early { not_before }
    }
}

fn system_roots() -> Result<RootCertStore, MaterialError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    if ignored > 0 || !found.errors.is_empty() {
        tracing::warn!(
            ignored,
            errors = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            "not all of the system's trusted authorities can be used"
        );
    }
    if roots.is_empty() { Err(MaterialError::NoSystemRoots) } else { Ok(roots) }
}

/// Verifies servers as rustls does, by the authorities that were read last, and remembers those that it accepted.
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
    /// The signature over the handshake is the last check of a peer, which is then accepted.
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

    /// Logs a refusal that differs from the last one, since an attempt is repeated every other second; and not too often, since
    /// several servers may take turns, and some errors contain the time.
    fn remember_refusal(&self, name: &str, error: &rustls::Error) {
        let refusal = format!("{name}: {error}");
        let mut last = self.shared.last_refusal.write().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&refusal) {
            if let Some(line) = self.shared.refusal_log.line() {
                tracing::warn!(
                    tls.server = name,
                    error = %error,
                    left_out = line.left_out,
                    "a server's certificate is refused"
                );
            }
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
    #[error("{} {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: FileError,
    },
    /// A file is not the PEM that is needed.
    #[error("{} {cause}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: PemError,
    },
    /// A PEM block holds something else than a certificate.
    #[error("{}: line {line} begins something that is not one X.509 certificate: remove it", path.display())]
    NotX509 {
        /// The file.
        path: PathBuf,
        /// The line that the block begins in.
        line: usize,
    },
    /// A certificate cannot be used.
    #[error("{}: line {line} begins a certificate that cannot be used: remove or replace it", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// The line that it begins in.
        line: usize,
        /// Why.
        #[source]
        cause: rustls::Error,
    },
    /// A certificate is past its end, or before its beginning.
    #[error("{}: the certificate of {subject} is valid from {not_before} to {not_after} only: renew it", path.display())]
    Expired {
        /// The file.
        path: PathBuf,
        /// The certificate's subject.
        subject: String,
        /// From when it is valid.
        not_before: OffsetDateTime,
        /// Until when it is valid.
        not_after: OffsetDateTime,
    },
    /// The authorities' keys are of kinds that the provider does not verify with.
    #[error(
        "{} holds no authority that can be used: a key of {kind} is not supported; use an authority whose key is {}",
        path.display(), key::SUPPORTED
    )]
    AuthorityKey {
        /// The file.
        path: PathBuf,
        /// The kind of the first one's key.
        kind: KeyKind,
    },
    /// The key is of a kind that the provider does not sign with.
    #[error(
        "{} holds a key of {kind}, which is not supported: use a key and a certificate of {}",
        path.display(), key::SUPPORTED
    )]
    UnsupportedKey {
        /// The file.
        path: PathBuf,
        /// The kind.
        kind: KeyKind,
    },
    /// The provider supports this kind of key, but refuses the key.
    #[error(
        "{} holds a key of {kind} that is damaged or lacks its public half: write it anew with \
         `openssl ec -in FILE -out NEW`", path.display()
    )]
    BrokenKey {
        /// The file.
        path: PathBuf,
        /// The kind.
        kind: KeyKind,
    },
    /// The key is that of a certificate which is not the first.
    #[error(
        "the key of {} does not belong to the first certificate of {} but to a later one: put that one first",
        key.display(), certificate.display()
    )]
    Order {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The key is another certificate's.
    #[error(
        "the key of {} does not belong to the certificate of {}: give the key that the certificate was issued for",
        key.display(), certificate.display()
    )]
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
        /// The one that is given.
        given: &'static str,
        /// The one that is missing.
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
    fn mismatch(certificate: &Path, key: &Path, identity: &CertifiedKey, cause: rustls::Error) -> Self {
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let belongs = |der: &CertificateDer<'static>| {
            CertifiedKey::new(vec![der.clone()], Arc::clone(&identity.key)).keys_match().is_ok()
        };
        match identity.cert.iter().skip(1).any(belongs) {
            true => Self::Order { certificate, key },
            false => Self::Key { certificate, key, cause },
        }
    }

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
        assert!(matches!(material.reload(), Err(MaterialError::Pem { cause: PemError::Foreign(_), .. })));
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
    fn a_file_without_a_newline_between_its_certificates_gives_all_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (pair("old", 2100), pair("new", 2100));
        let both = Pair {
            certificate: format!("{}{}", old.certificate.trim_end(), new.certificate),
            key: String::new(),
        };
        let files = write(directory.path(), &both, &pair("own", 2100));
        let material = Material::load(&files, MinimumVersion::Tls13).unwrap();
        let names: Vec<_> =
            material.authorities().into_iter().flat_map(|authority| authority.names).collect();
        assert_eq!(names, ["old", "new"]);
        let contents: Vec<String> = material.contents().iter().map(ToString::to_string).collect();
        assert_eq!(contents, ["2 certificates", "1 certificate", "1 key"]);
    }

    #[test]
    fn unusable_certificates_beside_usable_ones_are_reported_and_end_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (ca, own, old) = (pair("ca", 2100), pair("own", 2100), pair("old", 2021));
        let beside = |good: &Pair| Pair {
            certificate: format!("{}{}{}", good.certificate, old.certificate, good.key),
            key: format!("{}{}", good.certificate, good.key),
        };
        let chain = beside(&own);
        let authorities =
            Pair { certificate: format!("{}{}", old.certificate, ca.certificate), key: String::new() };
        let material =
            Material::load(&write(directory.path(), &authorities, &chain), MinimumVersion::Tls13).unwrap();
        assert_eq!(material.own().len(), 2);
        let told: Vec<String> = material.unused().iter().map(ToString::to_string).collect();
        let lines = own.certificate.lines().count() + 1;
        assert!(
            matches!(&told[..], [ca, own]
            if ca.contains("ca.pem") && ca.contains("in line 1 is valid from 2020-01-01")
            && own.contains("tls.crt") && own.contains(&format!("in line {lines} is valid"))),
            "{told:?}"
        );
        let contents: Vec<String> = material.contents().iter().map(ToString::to_string).collect();
        let expected =
            ["2 certificates", "2 certificates; not used here: 1 key", "1 key; not used here: 1 certificate"];
        assert_eq!(contents, expected);
        // The leaf is another matter, and so is the last authority.
        let turned =
            Pair { certificate: format!("{}{}", old.certificate, own.certificate), key: own.key.clone() };
        let load =
            |ca: &Pair, own: &Pair| Material::load(&write(directory.path(), ca, own), MinimumVersion::Tls13);
        assert!(matches!(load(&ca, &turned), Err(MaterialError::Expired { .. })));
        assert!(matches!(load(&old, &own), Err(MaterialError::Expired { .. })));
        let other =
            Pair { certificate: format!("{}{}", ca.certificate, own.certificate), key: own.key.clone() };
        assert!(matches!(load(&ca, &other), Err(MaterialError::Order { .. })));
    }

    #[test]
    fn an_authority_that_is_not_yet_valid_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let early = |name: &str| {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(2090, 1, 1);
            params.not_after = rcgen::date_time_ymd(2100, 1, 1);
            Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
        };
        let (ca, own, next) = (pair("ca", 2100), pair("own", 2100), early("next"));
        let both =
            Pair { certificate: format!("{}{}", ca.certificate, next.certificate), key: String::new() };
        let roots = |ca: &Pair| {
            let files = write(directory.path(), ca, &own);
            let now = OffsetDateTime::now_utc();
            let mut reader = FileReader { now, contents: Vec::new(), unused: Vec::new() };
            let (roots, _) = reader.private_roots(files.ca.as_ref().unwrap()).unwrap();
            (roots.len(), Material::load(&files, MinimumVersion::Tls13).unwrap())
        };
        for (ca, trusted) in [(&both, 2), (&next, 1)] {
            let (roots, material) = roots(ca);
            assert_eq!((roots, material.in_use().0.len()), (trusted, trusted));
            let told: Vec<String> = material.unused().iter().map(ToString::to_string).collect();
            assert!(
                matches!(&told[..], [told] if told.contains("is not valid before 2090-01-01") && !told.contains("passed over")),
                "{told:?}"
            );
        }
        // Every server would refuse the leaf.
        let load = Material::load(&write(directory.path(), &ca, &next), MinimumVersion::Tls13);
        assert!(matches!(load, Err(MaterialError::Expired { .. })));
    }

    #[test]
    fn alternating_or_timed_refusals_are_logged_in_few_lines() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path(), &pair("ca", 2100), &pair("own", 2100));
        let material = Material::load(&files, MinimumVersion::Tls13).unwrap();
        let verifier = Verifier { shared: Arc::clone(&material.shared), witness: None };
        let lines = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = Lines(Arc::clone(&lines));
        tracing::subscriber::with_default(counted, || {
            for number in 0..500 {
                let error = rustls::Error::General(format!("expired {number} s ago"));
                verifier.remember_refusal(if number % 2 == 0 { "nats-1" } else { "nats-2" }, &error);
            }
        });
        assert_eq!(lines.load(Ordering::Relaxed), usize::try_from(REFUSALS_PER_MINUTE).unwrap());
        assert_eq!(material.last_refusal().unwrap(), "nats-2: unexpected error: expired 499 s ago");
    }

    /// Counts log lines.
    struct Lines(Arc<std::sync::atomic::AtomicUsize>);

    impl tracing::Subscriber for Lines {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    /// An element of DER.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82, length[0], length[1]], content].concat()
    }

    /// A key file of that algorithm with nothing of a key in it.
    fn key_file(algorithm: &[u8], key: &[u8]) -> String {
        use base64::Engine;
        let whole = der(0x30, &[&[2, 1, 0][..], &der(0x30, algorithm), &der(4, key)].concat());
        let text = base64::engine::general_purpose::STANDARD.encode(whole);
        format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    }

    #[test]
    fn a_key_of_a_kind_that_is_not_supported_is_called_by_its_kind() {
        const EC: [u8; 9] = [6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
        const RSA: [u8; 13] = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1, 5, 0];
        let ec = |curve: &[u8]| key_file(&[&EC, curve].concat(), &[]);
        let rsa = |bytes: usize| {
            key_file(
                &RSA,
                &der(0x30, &[&[2, 1, 0][..], &der(2, &[&[0][..], &vec![0xff; bytes]].concat())].concat()),
            )
        };
        let cases = [
            (ec(&[6, 5, 0x2b, 0x81, 4, 0, 0x23]), "ECDSA P-521, which is not supported"),
            (ec(&[6, 5, 0x2b, 0x81, 4, 0, 0x0a]), "ECDSA secp256k1, which is not supported"),
            (ec(&[0x30, 3, 2, 1, 1]), "ECDSA on a curve without a name, which is not supported"),
            (rsa(128), "RSA of 1024 bits, which is not supported"),
            (rsa(1024), "RSA of 8192 bits, which is not supported"),
            (key_file(&[6, 3, 0x2b, 0x65, 0x71], &[]), "Ed448, which is not supported"),
            (key_file(&[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1], &[]), "DSA, which is not supported"),
            (key_file(&[6, 3, 0x2a, 3, 4], &[]), "object identifier 1.2.3.4, which is not supported"),
            (ec(&[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]), "ECDSA P-256 that is damaged"),
            (rsa(256), "RSA of 2048 bits that is damaged"),
        ];
        let directory = tempfile::tempdir().unwrap();
        let (ca, own) = (pair("ca", 2100), pair("own", 2100));
        for (key, named) in cases {
            let files = write(directory.path(), &ca, &Pair { certificate: own.certificate.clone(), key });
            let said = Material::load(&files, MinimumVersion::Tls13).unwrap_err().to_string();
            assert!(said.contains("tls.key") && said.contains(named), "{said}");
        }
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
