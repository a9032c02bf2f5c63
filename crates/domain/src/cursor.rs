use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::Sha256;

use crate::CommunityId;
use crate::mac::keyed;

/// The format's version, the first byte of every cursor. Where the shape of one list's position changes, its ordering says so.
const VERSION: u8 = 1;
/// Half of HMAC-SHA-256's output: 128 bits (RFC 2104, section 5, allows no less).
const TAG: usize = 16;

/// Where the next page of a list begins: opaque text of at most 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct Cursor(String);

impl Cursor {
    /// The largest number of bytes.
    pub const MAX: usize = 512;

    /// Takes a cursor as a client sent it. Whether Muster made it is only known when a [`CursorKey`] opens it.
    ///
    /// # Errors
    /// [`CursorError::TooLong`] above [`Cursor::MAX`] bytes.
    pub fn parse(text: impl Into<String>) -> Result<Self, CursorError> {
        let text = text.into();
        if text.len() > Self::MAX { Err(CursorError::TooLong) } else { Ok(Self(text)) }
    }

    /// The text to hand back to ask for the next page.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Cursor {
    type Error = CursorError;

    fn try_from(text: String) -> Result<Self, CursorError> {
        Self::parse(text)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a cursor is good for: one list of one community in one ordering. It is not stored in the cursor but signed with
/// it, so that a cursor does not open anywhere else.
#[derive(Debug, Clone, Copy)]
pub struct CursorScope<'a> {
    /// The endpoint, such as `profiles.ranked`.
    pub endpoint: &'static str,
    /// The community whose list it is.
    pub community: CommunityId,
    /// Whatever else selects the list: a filter, a sort order, a profile. Empty when there is nothing.
    pub ordering: &'a str,
}

/// The secret that signs cursors; every replica of the worker shares it.
#[derive(Clone)]
pub struct CursorKey(Hmac<Sha256>);

impl CursorKey {
    /// Takes 32 random bytes.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        Self(keyed(secret))
    }

    /// Makes the cursor for `position` in the list that `scope` names.
    ///
    /// # Errors
    /// [`CursorError::TooLong`] when the position does not fit, which no position of Muster's own does.
    pub fn seal<P: Serialize>(&self, scope: &CursorScope<'_>, position: &P) -> Result<Cursor, CursorError> {
        let mut bytes = vec![VERSION];
        bytes = postcard::to_extend(position, bytes).map_err(|_| CursorError::TooLong)?;
        let tag = self.mac(scope, &bytes).finalize().into_bytes();
        bytes.extend(tag.iter().take(TAG));
        Cursor::parse(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads back the position, if this key made the cursor for this very scope.
    ///
    /// # Errors
    /// [`CursorError::Foreign`] for anything else, without saying what was wrong with it.
    pub fn open<P: DeserializeOwned>(
        &self,
        scope: &CursorScope<'_>,
        cursor: &Cursor,
    ) -> Result<P, CursorError> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor.as_str()).map_err(|_| CursorError::Foreign)?;
        let (body, tag) = bytes
            .len()
            .checked_sub(TAG)
            .and_then(|at| bytes.split_at_checked(at))
            .ok_or(CursorError::Foreign)?;
        self.mac(scope, body).verify_truncated_left(tag).map_err(|_| CursorError::Foreign)?;
        match body.split_first() {
            // What is left over is of another shape.
            Some((&VERSION, position)) => match postcard::take_from_bytes(position) {
                Ok((position, [])) => Ok(position),
                _ => Err(CursorError::Foreign),
            },
            _ => Err(CursorError::Foreign),
        }
    }

    fn mac(&self, scope: &CursorScope<'_>, body: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        // The zero byte, the fixed size and the length keep the parts apart.
        mac.update(scope.endpoint.as_bytes());
        mac.update(&[0]);
        mac.update(scope.community.get().as_bytes());
        mac.update(&u64::try_from(scope.ordering.len()).unwrap_or(u64::MAX).to_be_bytes());
        mac.update(scope.ordering.as_bytes());
        mac.update(body);
        mac
    }
}

impl fmt::Debug for CursorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CursorKey(..)")
    }
}

/// Why a cursor was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// Over [`Cursor::MAX`] bytes.
    #[error("a cursor has at most {max} bytes: hand back the page's `next` as it is", max = Cursor::MAX)]
    TooLong,
    /// Not made by Muster for this endpoint, community and ordering, or changed since.
    #[error(
        "the cursor is not of this list: begin at the first page and hand back the page's `next` as it is"
    )]
    Foreign,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn scope(ordering: &str) -> CursorScope<'_> {
        CursorScope { endpoint: "profiles.ranked", community: CommunityId::new(Uuid::nil()), ordering }
    }

    proptest! {
        #[test]
        fn a_sealed_cursor_opens(key: [u8; 32], score: i64, name in "\\PC{0,32}", id: u128) {
            let key = CursorKey::new(key);
            let position = (score, name, Uuid::from_u128(id));
            let cursor = key.seal(&scope("asc"), &position).unwrap();
            prop_assert!(cursor.as_str().len() <= Cursor::MAX);
            prop_assert_eq!(key.open::<(i64, String, Uuid)>(&scope("asc"), &cursor).unwrap(), position);
        }

        #[test]
        fn a_changed_byte_is_refused(score: i64, at: prop::sample::Index, to in "[A-Za-z0-9_-]") {
            let key = CursorKey::new([7; 32]);
            let cursor = key.seal(&scope(""), &score).unwrap();
            let mut text: Vec<char> = cursor.as_str().chars().collect();
            let at = at.index(text.len());
            let to = to.chars().next().unwrap();
            prop_assume!(text[at] != to);
            text[at] = to;
            let changed = Cursor::parse(text.into_iter().collect::<String>()).unwrap();
            prop_assert_eq!(key.open::<i64>(&scope(""), &changed), Err(CursorError::Foreign));
        }

        #[test]
        fn any_text_is_refused_not_panicked_at(text in "\\PC{0,512}") {
            if let Ok(cursor) = Cursor::parse(text) {
                prop_assert!(CursorKey::new([7; 32]).open::<i64>(&scope(""), &cursor).is_err());
            }
        }
    }

    #[test]
    fn a_cursor_is_good_for_its_scope_only() {
        let key = CursorKey::new([7; 32]);
        let made_for = scope("nym:asc");
        let cursor = key.seal(&made_for, &5_i64).unwrap();
        let elsewhere = [
            CursorScope { endpoint: "profiles.active", ..made_for },
            CursorScope { community: CommunityId::new(Uuid::max()), ..made_for },
            CursorScope { ordering: "nym:desc", ..made_for },
        ];
        for scope in elsewhere {
            assert_eq!(key.open::<i64>(&scope, &cursor), Err(CursorError::Foreign));
        }
        assert_eq!(CursorKey::new([8; 32]).open::<i64>(&made_for, &cursor), Err(CursorError::Foreign));
        assert_eq!(Cursor::parse("x".repeat(513)), Err(CursorError::TooLong));
    }
}
