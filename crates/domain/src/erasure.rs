use std::fmt;
use std::str::FromStr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::GuildId;
use crate::mac::keyed;

/// What the key is for, so that what it makes is of no other use of the same secret.
const PURPOSE: &[u8] = b"muster erasures 1";
/// What follows the purpose: of the key itself, or of a person.
const OF_KEY: u8 = 0;
const OF_PERSON: u8 = 1;

/// The secret of a deployment under which erased persons are remembered; every replica of the worker shares it, and so does a
/// database that is restored from a backup.
#[derive(Clone)]
pub struct ErasureKey(Hmac<Sha256>);

impl ErasureKey {
    /// Takes 32 random bytes.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self(keyed(secret).chain_update(PURPOSE))
    }

    /// What is remembered of a person of a chat server, whose id comes as events give it.
    #[must_use]
    pub fn person(&self, guild: &GuildId, id: &str) -> ErasedPerson {
        let guild = guild.as_str().as_bytes();
        // The length keeps the two ids apart.
        let length = u64::try_from(guild.len()).unwrap_or(u64::MAX).to_be_bytes();
        let mac = self.0.clone().chain_update([OF_PERSON]).chain_update(length).chain_update(guild);
        ErasedPerson(mac.chain_update(id.as_bytes()).finalize().into_bytes().into())
    }

    /// What tells this key from another without giving it away.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        let tag = self.0.clone().chain_update([OF_KEY]).finalize().into_bytes();
        KeyFingerprint(u64::from_be_bytes(std::array::from_fn(|n| tag.get(n).copied().unwrap_or_default())))
    }
}

impl fmt::Debug for ErasureKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ErasureKey(..)")
    }
}

/// An erased person of one chat server: HMAC-SHA-256 (RFC 2104) over both ids, written as 43 characters of base64url. Equal
/// for equal ids of one deployment; without its key, ids cannot be tried on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErasedPerson([u8; 32]);

impl ErasedPerson {
    /// The hash itself.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for ErasedPerson {
    fn from(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl fmt::Display for ErasedPerson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl FromStr for ErasedPerson {
    type Err = ErasedPersonError;

    fn from_str(text: &str) -> Result<Self, ErasedPersonError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ErasedPersonError)?;
        bytes.try_into().map(Self).map_err(|_| ErasedPersonError)
    }
}

/// The text is no [`ErasedPerson`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an erased person is written as 43 characters of base64url: take the list as `erasures export` wrote it"
)]
pub struct ErasedPersonError;

/// The fingerprint of an [`ErasureKey`]: 64 bits of a hash, written as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyFingerprint(u64);

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erased_person_is_of_one_id_one_chat_server_and_one_deployment() {
        let guild = |id: &str| GuildId::parse(id).unwrap();
        let key = ErasureKey::new([7; 32]);
        let paul = key.person(&guild("tabr"), "paul");
        assert_eq!(paul, ErasureKey::new([7; 32]).person(&guild("tabr"), "paul"));
        for other in [
            key.person(&guild("tabr"), "paul2"),
            key.person(&guild("makab"), "paul"),
            // The same characters, parted elsewhere.
            key.person(&guild("tabrp"), "aul"),
            ErasureKey::new([8; 32]).person(&guild("tabr"), "paul"),
        ] {
            assert_ne!(paul, other);
        }
        assert_ne!(key.fingerprint(), ErasureKey::new([8; 32]).fingerprint());
        assert!(!format!("{key:?}").contains('7'));
    }

    #[test]
    fn an_erased_person_is_read_back_as_written_and_nothing_else_is() {
        let paul = ErasureKey::new([7; 32]).person(&GuildId::parse("tabr").unwrap(), "paul");
        let text = paul.to_string();
        assert_eq!((text.len(), text.parse()), (43, Ok(paul)));
        let short: String = text.chars().skip(1).collect();
        for wrong in ["", "paul", &short, &format!("{text}A"), &format!("{text}=")] {
            assert_eq!(wrong.parse::<ErasedPerson>(), Err(ErasedPersonError), "{wrong}");
        }
    }
}
