use hmac::{Hmac, KeyInit};
use sha2::Sha256;

/// HMAC-SHA-256 under a secret.
pub(crate) fn keyed(secret: [u8; 32]) -> Hmac<Sha256> {
    // HMAC pads a key with zeros to its block (RFC 2104, section 2), which is done here to have the right size.
    let mut block = [0; 64];
    block.iter_mut().zip(secret).for_each(|(padded, byte)| *padded = byte);
    Hmac::new(&block.into())
}
