//! The credentials of a client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::AuthError;
use nkeys::{KeyPair, KeyPairType};
use secrecy::{ExposeSecret, SecretString};

use super::monitor::LinkFailure;
use crate::tls::material::Witness;

/// The credentials of a client. Their debug text shows no secret.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// None, or the client certificate alone.
    #[default]
    None,
    /// A user name and a password.
    UserPassword {
        /// The name.
        user: String,
        /// The password.
        password: SecretString,
    },
    /// A token.
    Token(SecretString),
    /// An NKey: see [`Credentials::nkey`].
    NKey(UserKey),
    /// A JSON web token and an NKey: see [`Credentials::file`].
    Jwt {
        /// The token.
        jwt: SecretString,
        /// The key that it names.
        key: UserKey,
    },
}

/// The key pair of a user.
#[derive(Debug, Clone)]
pub struct UserKey(Arc<KeyPair>);

/// Why something is not credentials. The causes are not kept: they may quote the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// The NKey's file is not one.
    #[error("the NKey file does not contain a user's seed (SU...): create it again with `nk -gen user`")]
    Seed,
    /// The credentials file is not one.
    #[error("the NATS credentials file does not contain a JWT and an NKey seed: create it again with `nsc`")]
    File,
}

impl Credentials {
    /// An NKey by its seed (`SU…`).
    ///
    /// # Errors
    /// [`CredentialsError::Seed`] for anything else, such as the seed of an account.
    pub fn nkey(seed: &SecretString) -> Result<Self, CredentialsError> {
        UserKey::parse(seed.expose_secret().trim()).map(Self::NKey).ok_or(CredentialsError::Seed)
    }

    /// A JSON web token and an NKey, by the contents of the file that `nsc` writes.
    ///
    /// # Errors
    /// [`CredentialsError::File`] for anything else.
    pub fn file(contents: &SecretString) -> Result<Self, CredentialsError> {
        let (jwt, seed) = jwt_and_seed(contents.expose_secret()).ok_or(CredentialsError::File)?;
        let key = UserKey::parse(seed).ok_or(CredentialsError::File)?;
        Ok(Self::Jwt { jwt: jwt.into(), key })
    }
}

impl UserKey {
    /// The key of a user's seed; that of an account or an operator is none.
    fn parse(seed: &str) -> Option<Self> {
        let key = KeyPair::from_seed(seed).ok()?;
        (key.key_pair_type() == KeyPairType::User).then(|| Self(Arc::new(key)))
    }
}

/// Sends the credentials; where TLS is required, only to a server that has proved its identity.
pub(super) struct Login {
    pub(super) credentials: Credentials,
    pub(super) requires_tls: bool,
    /// Whether the server proved its identity; without a witness it did not.
    pub(super) witness: Option<Witness>,
    /// Set when a server asked that had not proved its identity.
    pub(super) unproven: Arc<AtomicBool>,
}

impl Login {
    /// The credentials for a server that sent `nonce` to be signed.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<async_nats::Auth, AuthError> {
        if self.requires_tls && !self.witness.as_ref().is_some_and(Witness::has_proof) {
            self.unproven.store(true, Ordering::Release);
            return Err(AuthError::new(LinkFailure::NotTls));
        }
        let sign = |key: &UserKey| key.0.sign(nonce).map_err(|_| AuthError::new("the NKey cannot sign"));
        let mut auth = async_nats::Auth::new();
        match &self.credentials {
            Credentials::None => {}
            Credentials::UserPassword { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.expose_secret().to_owned());
            }
            Credentials::Token(token) => auth.token = Some(token.expose_secret().to_owned()),
            Credentials::NKey(key) => {
                auth.nkey = Some(key.0.public_key());
                auth.signature = Some(sign(key)?);
            }
            Credentials::Jwt { jwt, key } => {
                auth.jwt = Some(jwt.expose_secret().to_owned());
                auth.signature = Some(sign(key)?);
            }
        }
        Ok(auth)
    }
}

/// The JWT and the NKey seed of a credentials file: the two lines between lines of dashes. A file with more of them, such as
/// two joined files, is refused.
fn jwt_and_seed(contents: &str) -> Option<(&str, &str)> {
    let edge = |line: &str| line.starts_with("---");
    let mut lines = contents.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut value = || {
        let begun = lines.by_ref().any(edge);
        let value = lines.next().filter(|line| begun && !edge(line))?;
        lines.next().filter(|line| edge(line)).map(|_| value)
    };
    let (jwt, seed) = (value()?, value()?);
    let is_jwt = |text: &str| {
        let of_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        text.split('.').count() == 3
            && text.split('.').all(|part| !part.is_empty() && part.chars().all(of_part))
    };
    (is_jwt(jwt) && !lines.any(edge)).then_some((jwt, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_is_read_as_nsc_writes_it() {
        let seed = KeyPair::new_user().seed().unwrap();
        let file = format!(
            "-----BEGIN NATS USER JWT-----\r\nab.c-d.e_f\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEYs are sensitive and should be treated as secrets.\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n"
        );
        assert_eq!(jwt_and_seed(&file), Some(("ab.c-d.e_f", seed.as_str())));
        let twice = file.repeat(2);
        let (truncated, _) = file.split_once("------END USER").unwrap();
        let jwt_cut = file.replace(".e_f", "");
        let seedless = file.replace(&seed, "");
        for broken in [
            "",
            "ab.c-d",
            "---\n---\n---\n---",
            "---\na\n---\n",
            "---\na\nb\n---\n---\nc\n---",
            &twice,
            truncated,
            &jwt_cut,
            &seedless,
        ] {
            assert_eq!(jwt_and_seed(broken), None, "{broken}");
        }
        assert!(Credentials::file(&file.as_str().into()).is_ok());
        let account = KeyPair::new_account().seed().unwrap();
        assert!(Credentials::file(&file.replace(&seed, &account).into()).is_err());
        assert!(Credentials::nkey(&account.into()).is_err());
        assert!(Credentials::nkey(&KeyPair::new_user().public_key().into()).is_err());
        let nkey = Credentials::nkey(&seed.as_str().into()).unwrap();
        assert!(!format!("{nkey:?} {:?}", Credentials::file(&file.into())).contains(&seed));
    }

    #[test]
    fn no_credentials_show_a_secret() {
        let secret = || SecretString::from("s3cret");
        let key = UserKey(Arc::new(KeyPair::new_user()));
        for credentials in [
            Credentials::UserPassword { user: "user".to_owned(), password: secret() },
            Credentials::Token(secret()),
            Credentials::Jwt { jwt: secret(), key },
        ] {
            assert!(!format!("{credentials:?}").contains("s3cret"));
        }
    }
}
