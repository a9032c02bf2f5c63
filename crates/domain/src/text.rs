/// Why a piece of text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Nothing was left after trimming.
    #[error("must not be empty: give 1 to {max} characters")]
    Empty {
        /// The largest number of characters.
        max: usize,
    },
    /// More characters than the bound.
    #[error("has {length} characters: give 1 to {max}")]
    TooLong {
        /// The number of characters given.
        length: usize,
        /// The largest number of characters.
        max: usize,
    },
    /// A control, bidirectional-override or otherwise disallowed character.
    #[error("holds the character U+{0:04X}, which is not allowed here: remove it")]
    Character(u32),
}

/// Control characters, and the marks that reorder or hide the text around them, with which a name could pass for
/// another's (Unicode Technical Report 36, section 2.3).
pub(crate) fn is_deceptive(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// Checks the bounds that every piece of text shares: 1 to `max` characters, each of them `allowed`.
pub(crate) fn check(text: &str, max: usize, allowed: impl Fn(char) -> bool) -> Result<(), TextError> {
    let mut length = 0_usize;
    for c in text.chars() {
        if !allowed(c) {
            return Err(TextError::Character(u32::from(c)));
        }
        length = length.saturating_add(1);
    }
    match length {
        0 => Err(TextError::Empty { max }),
        _ if length > max => Err(TextError::TooLong { length, max }),
        _ => Ok(()),
    }
}

/// Makes a newtype over checked text: `parse` holds the bound, serde goes through it.
macro_rules! text_type {
    ($(#[$meta:meta])* $name:ident, $max:literal, $allowed:expr) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The largest number of characters.
            pub const MAX: usize = $max;

            /// Checks `text` against the type's bounds.
            ///
            /// # Errors
            /// [`TextError`](crate::TextError) names the bound that was broken.
            pub fn parse(text: impl Into<String>) -> Result<Self, crate::TextError> {
                let text = text.into();
                crate::text::check(&text, Self::MAX, $allowed)?;
                Ok(Self(text))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = crate::TextError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
pub(crate) use text_type;
