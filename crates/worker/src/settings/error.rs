//! Errors in the configuration, each with its key.

use std::fmt;

/// The prefix of every variable.
pub(super) const PREFIX: &str = "MUSTER__";

/// The variable that sets a key.
pub(crate) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// An error in the configuration, with what to do about it.
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
