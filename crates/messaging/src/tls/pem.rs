//! PEM files as certificates and keys. Nothing else in the workspace reads PEM.
//!
//! 2026-11-24: rustls-pemfile is archived (RUSTSEC-2025-0134), a thin layer over `rustls_pki_types::pem::PemObject`,
//! which is its successor. It is named in this file alone, so that the change is made here alone.

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The largest PEM file that is read: 1 MiB, several times a system's whole certificate store.
pub const MAX_PEM: usize = 1024 * 1024;

/// Reads every certificate of a PEM file, in its order.
///
/// # Errors
/// [`PemError`] when the file is too large, broken, or holds no certificate.
pub fn read_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Vec<_> =
        rustls_pemfile::certs(&mut bounded(pem)?).collect::<Result<_, _>>().map_err(broken)?;
    if certificates.is_empty() { Err(PemError::NoCertificate) } else { Ok(certificates) }
}

/// Reads the private key of a PEM file: PKCS #8, PKCS #1 or SEC 1.
///
/// # Errors
/// [`PemError`] when the file is too large, broken, or does not hold exactly one private key.
pub fn read_private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    let mut keys = Vec::new();
    for item in rustls_pemfile::read_all(&mut bounded(pem)?) {
        match item.map_err(broken)? {
            rustls_pemfile::Item::Pkcs1Key(key) => keys.push(PrivateKeyDer::Pkcs1(key)),
            rustls_pemfile::Item::Pkcs8Key(key) => keys.push(PrivateKeyDer::Pkcs8(key)),
            rustls_pemfile::Item::Sec1Key(key) => keys.push(PrivateKeyDer::Sec1(key)),
            _ => {}
        }
    }
    match (keys.pop(), keys.len()) {
        (Some(key), 0) => Ok(key),
        (None, _) => Err(PemError::NoKey),
        (Some(_), _) => Err(PemError::ManyKeys),
    }
}

/// The cause is not kept: it may quote a line of the file, and with it a key whose line breaks were lost.
fn broken(_: std::io::Error) -> PemError {
    PemError::Broken
}

fn bounded(pem: &[u8]) -> Result<&[u8], PemError> {
    if pem.len() > MAX_PEM { Err(PemError::TooLarge) } else { Ok(pem) }
}

/// Why a PEM file was refused.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// Over [`MAX_PEM`] bytes.
    #[error("is over {MAX_PEM} bytes: give only the certificates or the key that are needed")]
    TooLarge,
    /// The text is not PEM, or what it encodes is cut.
    #[error("is not PEM: it needs whole sections from -----BEGIN to -----END")]
    Broken,
    /// There is no certificate.
    #[error("holds no certificate: it needs a section -----BEGIN CERTIFICATE-----")]
    NoCertificate,
    /// There is no private key.
    #[error("holds no private key: it needs one unencrypted section -----BEGIN PRIVATE KEY-----")]
    NoKey,
    /// There is more than one private key.
    #[error("holds several private keys: leave the one that belongs to the certificate")]
    ManyKeys,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_answered_not_panicked_at(pem: Vec<u8>) {
            let _ = read_certificates(&pem);
            let _ = read_private_key(&pem);
        }
    }

    #[test]
    fn what_a_file_must_hold() {
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
        assert_eq!(
            read_certificates(format!("{certificate}{key}{certificate}").as_bytes()).unwrap().len(),
            2
        );
        assert!(read_private_key(format!("{certificate}{key}").as_bytes()).is_ok());
        assert!(matches!(read_certificates(key.as_bytes()), Err(PemError::NoCertificate)));
        assert!(matches!(read_private_key(certificate.as_bytes()), Err(PemError::NoKey)));
        assert!(matches!(read_private_key(format!("{key}{key}").as_bytes()), Err(PemError::ManyKeys)));
        let cut = key.get(..key.len() / 2).unwrap();
        assert!(matches!(read_private_key(cut.as_bytes()), Err(PemError::Broken)));
        assert!(matches!(read_certificates(&vec![b'x'; MAX_PEM + 1]), Err(PemError::TooLarge)));
    }

    #[test]
    fn a_key_on_one_line_is_not_repeated() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem().replace('\n', "");
        for error in
            [read_private_key(key.as_bytes()).unwrap_err(), read_certificates(key.as_bytes()).unwrap_err()]
        {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let shown = format!("{error} {error:?} {source:?}");
            assert!(!shown.contains(key.get(40..60).unwrap()), "{shown}");
        }
    }
}
