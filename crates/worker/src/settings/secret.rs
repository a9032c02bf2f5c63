//! The only reader of secrets. It reads a secret whole, or refuses it with the name of its key and file.

use std::path::PathBuf;

use muster_messaging::tls::file;
use secrecy::{ExposeSecret, SecretString};

use super::error::SettingsError;
use crate::chain::chain;

/// The most bytes of a secret's file: NATS credentials are a few kilobytes.
const MAX_SECRET: usize = 64 * 1024;

/// A secret, or the file that holds it, with the key that sets it.
#[derive(Debug)]
pub(crate) enum Secret {
    Value { key: &'static str, text: SecretString },
    File { key: &'static str, path: PathBuf },
}

impl Secret {
    /// A secret of one line, such as a password.
    pub(crate) fn line(&self) -> Result<SecretString, SettingsError> {
        let text = self.document()?;
        // A blank at its end may be part of it; a line break never is.
        if text.expose_secret().contains(['\n', '\r']) {
            return Err(self.refused("has more than one line: it must hold the secret alone"));
        }
        Ok(text)
    }

    /// A secret of several lines, such as a credentials file.
    pub(crate) fn document(&self) -> Result<SecretString, SettingsError> {
        let bytes = match self {
            Self::Value { text, .. } => text.expose_secret().as_bytes().to_vec(),
            Self::File { path, .. } => {
                file::read(path, MAX_SECRET).map_err(|error| self.refused(chain(&error)))?
            }
        };
        // The causes are not kept: they may quote the file.
        let text = String::from_utf8(bytes).map_err(|_| self.refused("is not UTF-8 text: save it so"))?;
        if text.starts_with('\u{feff}') {
            return Err(self.refused("begins with a byte order mark: save it without one"));
        }
        if text.contains('\0') {
            return Err(self.refused("holds a NUL byte: save it as UTF-8 text"));
        }
        if text.trim().is_empty() {
            return Err(self.refused("is empty: check that whatever writes it has done so"));
        }
        // An editor's newline at the end is not part of the secret.
        Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
    }

    /// Names the key and the file, and what is wrong.
    pub(crate) fn refused(&self, problem: impl std::fmt::Display) -> SettingsError {
        match self {
            Self::Value { key, .. } => SettingsError::key(key, problem),
            Self::File { key, path } => SettingsError::new(format!("{key}: {} {problem}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(directory: &tempfile::TempDir, bytes: &[u8]) -> Secret {
        let path = directory.path().join("secret");
        std::fs::write(&path, bytes).unwrap();
        Secret::File { key: "nats.password_file", path }
    }

    #[test]
    fn a_newline_at_the_end_is_not_part_of_a_secret_and_a_blank_is() {
        let directory = tempfile::tempdir().unwrap();
        for bytes in ["hunter2", "hunter2\n", "hunter2\r\n", "hunter2\n\n"] {
            assert_eq!(of(&directory, bytes.as_bytes()).line().unwrap().expose_secret(), "hunter2");
        }
        assert_eq!(of(&directory, " hunter2 \n".as_bytes()).line().unwrap().expose_secret(), " hunter2 ");
    }

    #[test]
    fn a_malformed_secret_is_refused_by_key_and_file_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let mut large = b"hunter2".to_vec();
        large.resize(MAX_SECRET + 1, b'x');
        let refused: [(&[u8], &str); 9] = [
            (b"", "is empty"),
            (b"\n\n", "is empty"),
            (b" \t\r\n", "is empty"),
            (b"\xef\xbb\xbfhunter2\n", "byte order mark"),
            (b"\xff\xfeh\0u\0", "UTF-8"),
            (b"hunter2\0", "NUL"),
            (b"# the password\nhunter2\n", "more than one line"),
            (b"\nhunter2\n", "more than one line"),
            (&large, "more than 65536 bytes"),
        ];
        for (bytes, named) in refused {
            let secret = of(&directory, bytes);
            let said = secret.line().unwrap_err().to_string();
            assert!(said.contains(named) && !said.contains("hunter2"), "{said}");
            assert!(said.starts_with("nats.password_file: ") && said.contains("/secret "), "{said}");
        }
        for (path, named) in
            [("/nowhere/url", "No such file"), ("/dev", "is a directory"), ("/dev/null", "regular file")]
        {
            let said =
                Secret::File { key: "database.url_file", path: path.into() }.line().unwrap_err().to_string();
            assert!(
                said.starts_with(&format!("database.url_file: {path} ")) && said.contains(named),
                "{said}"
            );
        }
        let value = Secret::Value { key: "nats.token", text: "hunter2\nhunter3".into() };
        let said = value.line().unwrap_err().to_string();
        assert!(
            said.contains("nats.token") && said.contains("MUSTER__NATS__TOKEN") && !said.contains("hunter2"),
            "{said}"
        );
    }
}
