//! What kind of key a certificate or a key file holds, and whether the TLS provider can use it.

use std::fmt;

use rustls::pki_types::PrivateKeyDer;
use x509_parser::asn1_rs::{Any, FromDer, Integer, OctetString, Oid, Sequence, Tag};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

/// What a key of one's own may be.
pub const SUPPORTED: &str = "ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 4096 bits";

/// Kinds of keys by their object identifier; of ECDSA, the curves.
const NAMES: [(&str, &str); 16] = [
    (RSA, "RSA"),
    (EC, "ECDSA on a curve without a name"),
    (P256, "ECDSA P-256"),
    (P384, "ECDSA P-384"),
    (ED25519, "Ed25519"),
    ("1.3.132.0.35", "ECDSA P-521"),
    ("1.3.132.0.10", "ECDSA secp256k1"),
    ("1.3.132.0.33", "ECDSA P-224"),
    ("1.3.36.3.3.2.8.1.1.7", "ECDSA brainpoolP256r1"),
    ("1.3.101.113", "Ed448"),
    ("1.3.101.110", "X25519"),
    ("1.3.101.111", "X448"),
    ("1.2.840.10040.4.1", "DSA"),
    ("1.2.840.113549.1.1.10", "RSA-PSS"),
    ("1.2.840.113549.1.3.1", "Diffie-Hellman"),
    ("1.2.156.10197.1.301", "SM2"),
];
const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";
const ED25519: &str = "1.3.101.112";

/// The kind of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA, with the bits of its modulus.
    Rsa(usize),
    /// Another kind, or a curve of ECDSA, by its object identifier.
    Other(String),
    /// It cannot be told.
    Unknown,
}

impl KeyKind {
    /// Whether the provider can sign with such a key.
    #[must_use]
    pub fn can_sign(&self) -> bool {
        match self {
            Self::Rsa(bits) => (2048..=4096).contains(bits),
            Self::Other(id) => [P256, P384, ED25519].contains(&id.as_str()),
            Self::Unknown => false,
        }
    }

    /// Whether the provider can verify what such a key has signed.
    #[must_use]
    pub fn can_verify(&self) -> bool {
        matches!(self, Self::Rsa(2048..=8192)) || self.can_sign()
    }

    /// The kind of a private key.
    pub(crate) fn of_private(key: &PrivateKeyDer<'_>) -> Self {
        match key {
            PrivateKeyDer::Pkcs1(key) => modulus(key.secret_pkcs1_der()).map(Self::Rsa),
            PrivateKeyDer::Sec1(key) => curve(key.secret_sec1_der()),
            PrivateKeyDer::Pkcs8(key) => pkcs8(key.secret_pkcs8_der()),
            _ => None,
        }
        .unwrap_or(Self::Unknown)
    }

    /// The kind of a certificate's key.
    pub(crate) fn of_certificate(key: &SubjectPublicKeyInfo<'_>) -> Self {
        match key.parsed() {
            Ok(PublicKey::RSA(rsa)) if is(&key.algorithm, RSA) => Self::Rsa(bits(rsa.modulus)),
            // RSA-PSS parses as RSA does.
            Ok(PublicKey::RSA(_)) => Self::Other(key.algorithm.algorithm.to_id_string()),
            _ => algorithm(&key.algorithm),
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA of {bits} bits"),
            Self::Other(id) => match NAMES.iter().find(|(known, _)| known == id) {
                Some((_, name)) => f.write_str(name),
                None => write!(f, "a kind with the object identifier {id}"),
            },
            Self::Unknown => f.write_str("a kind that cannot be told"),
        }
    }
}

fn is(algorithm: &AlgorithmIdentifier<'_>, id: &str) -> bool {
    algorithm.algorithm.to_id_string() == id
}

/// By an algorithm's identifier; of ECDSA by its curve.
fn algorithm(algorithm: &AlgorithmIdentifier<'_>) -> KeyKind {
    let parameters = algorithm.parameters.as_ref();
    let named = |any: &&Any<'_>| is(algorithm, EC) && any.tag() == Tag::Oid;
    let curve = parameters.filter(named).and_then(|any| any.as_oid().ok());
    KeyKind::Other(curve.map_or_else(|| algorithm.algorithm.to_id_string(), |curve| curve.to_id_string()))
}

/// PrivateKeyInfo (RFC 5958): version, algorithm, and the key in an octet string.
fn pkcs8(der: &[u8]) -> Option<KeyKind> {
    let (_, outer) = Sequence::from_der(der).ok()?;
    let (rest, _version) = Any::from_der(&outer.content).ok()?;
    let (rest, identifier) = AlgorithmIdentifier::from_der(rest).ok()?;
    if is(&identifier, RSA) {
        let (_, inner) = OctetString::from_der(rest).ok()?;
        return modulus(inner.as_ref()).map(KeyKind::Rsa);
    }
    Some(algorithm(&identifier))
}

/// RSAPrivateKey (RFC 8017): version, modulus and more.
fn modulus(der: &[u8]) -> Option<usize> {
    let (_, outer) = Sequence::from_der(der).ok()?;
    let (rest, _version) = Any::from_der(&outer.content).ok()?;
    let (_, modulus) = Integer::from_der(rest).ok()?;
    Some(bits(modulus.as_ref()))
}

/// ECPrivateKey (RFC 5915): version, the key in an octet string, and the curve in `[0]`.
fn curve(der: &[u8]) -> Option<KeyKind> {
    let (_, outer) = Sequence::from_der(der).ok()?;
    let (rest, _version) = Any::from_der(&outer.content).ok()?;
    let (rest, _key) = Any::from_der(rest).ok()?;
    let (_, tagged) = Any::from_der(rest).ok()?;
    let (_, curve) = Oid::from_der(tagged.data).ok()?;
    Some(KeyKind::Other(curve.to_id_string()))
}

/// The bits of a number without its leading zeros.
fn bits(number: &[u8]) -> usize {
    let significant = number.iter().position(|byte| *byte != 0).and_then(|start| number.get(start..));
    significant.map_or(0, |bytes| {
        let leading = bytes.first().map_or(0, |byte| byte.leading_zeros());
        bytes.len().saturating_mul(8).saturating_sub(usize::try_from(leading).unwrap_or(0))
    })
}
