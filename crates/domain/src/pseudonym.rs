use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::mac::keyed;

/// What the key is for, so that it is none of the others that are made of the same secret.
const PURPOSE: &[u8] = b"muster pseudonyms 1";

/// The secret of a deployment that makes [`Pseudonym`]s; every replica of the worker shares it.
#[derive(Clone)]
pub struct PseudonymKey(Hmac<Sha256>);

impl PseudonymKey {
    /// The key of a deployment with this secret.
    #[must_use]
    pub fn derive(secret: [u8; 32]) -> Self {
        Self(keyed(keyed(secret).chain_update(PURPOSE).finalize().into_bytes().into()))
    }

    /// The pseudonym of a person's id of any kind, in the form in which the API writes it.
    #[must_use]
    pub fn of(&self, id: &str) -> Pseudonym {
        let tag = self.0.clone().chain_update(id.as_bytes()).finalize().into_bytes();
        Pseudonym(u64::from_be_bytes(std::array::from_fn(|n| tag.get(n).copied().unwrap_or_default())))
    }
}

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PseudonymKey(..)")
    }
}

/// What stands for a person in a log: equal for equal ids of one deployment, and not to be turned back without its secret.
/// The first 64 bits of HMAC-SHA-256 (RFC 2104), written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pseudonym(u64);

impl fmt::Display for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pseudonym_is_of_one_id_and_one_deployment() {
        let key = PseudonymKey::derive([7; 32]);
        let paul = key.of("81384788765712384");
        assert_eq!(paul, PseudonymKey::derive([7; 32]).of("81384788765712384"));
        assert_ne!(paul, key.of("81384788765712385"));
        assert_ne!(paul, PseudonymKey::derive([8; 32]).of("81384788765712384"));
        assert_eq!(paul.to_string().len(), 16);
        assert!(!format!("{key:?}").contains('7'));
    }
}
