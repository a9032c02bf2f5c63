use serde::{Serialize, Serializer};

use crate::UserId;
use crate::text::{self, TextError, shown_type};

shown_type!(
    /// A member's display name: 1 to 32 characters as a reader counts them, cleaned of what shows nothing.
    ///
    /// The bytes leave room for 32 code points of any kind as they are typed: NFC makes up to 12 bytes of one.
    ///
    /// ```
    /// use muster_domain::Nym;
    ///
    /// let nym = Nym::parse("  Zoe\u{301}\u{200f} ").unwrap();
    /// assert_eq!(nym.as_str(), "Zo\u{e9}");
    /// assert!(Nym::parse("\u{200b}").is_err());
    /// ```
    Nym, 32, 384
);

impl Nym {
    /// What a member without a name is called: the beginning of the person's id.
    #[must_use]
    pub fn of_user(user: &UserId) -> Self {
        Self(user.as_str().chars().take(Self::MAX).collect())
    }

    /// The name as compared: see [`NymKey`].
    #[must_use]
    pub fn key(&self) -> NymKey {
        NymKey::of(&self.0)
    }

    /// Whether both are the same name as compared, where a [`NymKey`] only holds their first code points.
    ///
    /// ```
    /// # use muster_domain::Nym;
    /// // This letter stands for eighteen.
    /// let letters = "\u{fdfa}".repeat(31);
    /// let (one, other) = (Nym::parse(format!("{letters}A"))?, Nym::parse(format!("{letters}B"))?);
    /// assert_eq!(one.key(), other.key());
    /// assert!(!one.is_same(&other));
    /// # Ok::<(), muster_domain::TextError>(())
    /// ```
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        text::key(&self.0, usize::MAX) == text::key(&other.0, usize::MAX)
    }
}

/// A nym as it is sorted, looked up and searched: without regard to case, to how characters are composed, to compatibility
/// forms such as full width, and to joiners. At most [`NymKey::MAX`] code points of it count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NymKey(String);

impl NymKey {
    /// The largest number of code points: 256 bytes, so that a cursor holds one. Folding can make eighteen of one.
    pub const MAX: usize = 64;

    fn of(shown: &str) -> Self {
        Self(text::key(shown, Self::MAX))
    }

    /// The folded text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has as many code points as a key may have, so that others may have been cut off.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.chars().count() >= Self::MAX
    }
}

/// What a search looks for: 1 to 100 characters, cleaned and folded as nyms are. Every character stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchQuery {
    shown: String,
    key: NymKey,
}

impl SearchQuery {
    /// The largest number of characters.
    pub const MAX: usize = 100;
    /// The largest number of bytes.
    pub const MAX_BYTES: usize = 1200;

    /// Cleans and checks a search.
    ///
    /// # Errors
    /// [`TextError`] when there is nothing to look for, or too much.
    pub fn parse(given: impl Into<String>) -> Result<Self, TextError> {
        let shown = text::shown(given.into(), Self::MAX, Self::MAX_BYTES)?;
        Ok(Self { key: NymKey::of(&shown), shown })
    }

    /// The text as it was given, cleaned.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.shown
    }

    /// The folded text to look for.
    #[must_use]
    pub fn key(&self) -> &NymKey {
        &self.key
    }
}

impl Serialize for SearchQuery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown)
    }
}
