//! What is worth knowing of a certificate: whose it is and until when.

use std::fmt;

use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::KeyKind;

/// The most names of a certificate that are kept.
const MAX_NAMES: usize = 100;

/// The facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its subject's distinguished name.
    pub subject: String,
    /// Its issuer's distinguished name.
    pub issuer: String,
    /// The host names and addresses it is good for, at most 100 of them.
    pub names: Vec<String>,
    /// Its serial number, in hexadecimal.
    pub serial: String,
    /// From when it is valid.
    pub not_before: OffsetDateTime,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
    /// What kind of key it certifies.
    pub key: KeyKind,
    /// The SHA-256 of its DER form, in hexadecimal.
    pub fingerprint: String,
}

impl Certificate {
    /// Reads the facts of a certificate in DER form; its signature is not looked at.
    ///
    /// # Errors
    /// [`NotX509`] when it is no X.509 certificate, or more than one.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, NotX509> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|_| NotX509)?;
        if !rest.is_empty() {
            return Err(NotX509);
        }
        let names = parsed.subject_alternative_name().ok().flatten().map_or_else(Vec::new, |extension| {
            extension.value.general_names.iter().filter_map(name).take(MAX_NAMES).collect()
        });
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            names,
            serial: hex(parsed.raw_serial()),
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
            key: KeyKind::of_certificate(parsed.public_key()),
            fingerprint: hex(&Sha256::digest(der)),
        })
    }

    /// Whether it is valid at `now`.
    #[must_use]
    pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && !self.has_expired_at(now)
    }

    /// Whether it is past its end at `now`.
    #[must_use]
    pub fn has_expired_at(&self, now: OffsetDateTime) -> bool {
        self.not_after < now
    }
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string()),
        },
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes that are no X.509 certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not an X.509 certificate")]
pub struct NotX509;
