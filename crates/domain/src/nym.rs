use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::text::{self, TextError};

/// A member's display name: 1 to 32 characters after Unicode NFC and trimming, none of them a control character or a
/// mark that reorders the text around it.
///
/// ```
/// use muster_domain::Nym;
///
/// let nym = Nym::parse("  Zoe\u{301} ").unwrap();
/// assert_eq!(nym.as_str(), "Zo\u{e9}");
/// assert!(Nym::parse("admin\u{202e}nimda").is_err());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nym(String);

impl Nym {
    /// The largest number of characters.
    pub const MAX: usize = 32;

    /// Normalises and checks a display name.
    ///
    /// # Errors
    /// [`TextError`] when nothing is left after trimming, when it is too long, or when it holds a refused character.
    pub fn parse(given: &str) -> Result<Self, TextError> {
        // A name four times the bound in bytes cannot come down to it: NFC at most shrinks a character to a third.
        let mut composed: String = given.trim().chars().take(Self::MAX * 18).nfc().collect();
        composed.truncate(composed.trim_end().len());
        text::check(&composed, Self::MAX, |c| !text::is_deceptive(c))?;
        Ok(Self(composed))
    }

    /// The name as shown.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as compared: see [`NymKey`].
    #[must_use]
    pub fn key(&self) -> NymKey {
        NymKey::fold(&self.0)
    }
}

impl TryFrom<String> for Nym {
    type Error = TextError;

    fn try_from(given: String) -> Result<Self, TextError> {
        Self::parse(&given)
    }
}

impl From<Nym> for String {
    fn from(nym: Nym) -> Self {
        nym.0
    }
}

impl std::fmt::Display for Nym {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A nym as it is sorted, looked up and searched: without regard to case. Compatibility forms fold too (NFKC), so that
/// `Ｓｔｉｌｇａｒ` and `Stilgar` are found alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NymKey(String);

impl NymKey {
    fn fold(text: &str) -> Self {
        Self(text.nfkc().flat_map(char::to_lowercase).nfkc().collect())
    }

    /// The folded text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a search looks for: 1 to 100 characters, folded as nyms are. Every character stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchQuery(NymKey);

impl SearchQuery {
    /// The largest number of characters.
    pub const MAX: usize = 100;

    /// Normalises and checks a search.
    ///
    /// # Errors
    /// [`TextError`] when nothing is left after trimming, when it is too long, or when it holds a refused character.
    pub fn parse(given: &str) -> Result<Self, TextError> {
        let trimmed = given.trim();
        text::check(trimmed, Self::MAX, |c| !text::is_deceptive(c))?;
        Ok(Self(NymKey::fold(trimmed)))
    }

    /// The folded text to look for.
    #[must_use]
    pub fn key(&self) -> &NymKey {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_accepted_is_normal_and_bounded(given in "\\PC{0,40}") {
            if let Ok(nym) = Nym::parse(&given) {
                let text = nym.as_str();
                prop_assert!((1..=Nym::MAX).contains(&text.chars().count()));
                prop_assert_eq!(text.trim(), text);
                prop_assert!(unicode_normalization::is_nfc(text));
                prop_assert_eq!(Nym::parse(text).unwrap(), nym, "parsing is idempotent");
            }
        }

        #[test]
        fn any_text_is_answered_not_panicked_at(given: String) {
            let _ = Nym::parse(&given);
            let _ = SearchQuery::parse(&given);
        }

        #[test]
        fn a_key_ignores_case_and_folds_once(given in "[a-zA-Z\u{e0}-\u{ff}\u{410}-\u{44f}]{1,32}") {
            let key = Nym::parse(&given).unwrap().key();
            prop_assert_eq!(&Nym::parse(&given.to_uppercase()).map(|n| n.key()).unwrap_or(key.clone()), &key);
            prop_assert_eq!(&NymKey::fold(key.as_str()), &key);
        }
    }

    #[test]
    fn deceptive_characters_are_refused() {
        for c in ['\0', '\n', '\u{7f}', '\u{202e}', '\u{2066}', '\u{200f}', '\u{feff}'] {
            assert_eq!(Nym::parse(&format!("a{c}b")), Err(TextError::Character(u32::from(c))));
        }
    }

    #[test]
    fn the_bounds() {
        assert_eq!(Nym::parse("   "), Err(TextError::Empty { max: 32 }));
        assert!(Nym::parse(&"x".repeat(32)).is_ok());
        assert_eq!(Nym::parse(&"x".repeat(33)), Err(TextError::TooLong { length: 33, max: 32 }));
        assert!(Nym::parse(&"e\u{301}".repeat(32)).is_ok(), "counted after composition");
    }
}
