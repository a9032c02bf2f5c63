//! On whose behalf a client asks.

use std::fmt;

use serde::{Serialize, Serializer};

/// The person on whose behalf a client asks: 1 to 128 characters, none of them a control character.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller(String);

impl Caller {
    /// The largest number of characters.
    pub const MAX: usize = 128;

    /// Checks a caller's name.
    ///
    /// # Errors
    /// [`InvalidCaller`] says what it must be.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidCaller> {
        let text = text.into();
        let length = text.chars().take(Self::MAX.saturating_add(1)).count();
        if (1..=Self::MAX).contains(&length) && !text.chars().any(char::is_control) {
            Ok(Self(text))
        } else {
            Err(InvalidCaller)
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Caller {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A name that no caller can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must have 1 to {max} characters, none of them a control character", max = Caller::MAX)]
pub struct InvalidCaller;
