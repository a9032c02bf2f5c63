//! What is wrong with the configuration, said with the key.

use std::fmt;

/// What every variable begins with.
pub(super) const PREFIX: &str = "MUSTER__";

/// The variable that sets a key.
pub(crate) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// What is wrong with the configuration, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SettingsError(String);

impl SettingsError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    pub(crate) fn key(key: &str, problem: impl fmt::Display) -> Self {
        Self(format!("{key}: {problem} (in the file, or as {})", variable(key)))
    }
}
