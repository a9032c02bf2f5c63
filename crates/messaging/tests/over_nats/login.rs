//! The ways to say who is connecting that need keys, made on the spot.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use muster_messaging::connection::Credentials;
use nkeys::KeyPair;
use serde_json::{Value, json};

/// A way to log in: what the server is configured with, what the client shows, and what of it must never be seen.
pub(crate) struct Login {
    pub(crate) server: String,
    pub(crate) credentials: Credentials,
    pub(crate) secrets: Vec<String>,
}

/// By an NKey.
pub(crate) fn nkey() -> Login {
    let user = KeyPair::new_user();
    let seed = user.seed().unwrap();
    Login {
        server: format!("authorization {{ users: [{{ nkey: {} }}] }}", user.public_key()),
        credentials: Credentials::nkey(&seed.as_str().into()).unwrap(),
        secrets: vec![seed, user.public_key()],
    }
}

/// By a credentials file, as an operator with one account and one user issues it.
pub(crate) fn credentials() -> Login {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let operator_jwt = jwt(&operator, &operator, "operator", json!({}));
    let of_account = |account: &KeyPair| {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1
        });
        let issued = jwt(&operator, account, "account", json!({ "limits": limits }));
        format!("{}: {issued}", account.public_key())
    };
    // JetStream asks for a system account where an operator rules.
    let system = KeyPair::new_account();
    let user_jwt = jwt(&account, &user, "user", json!({ "subs": -1, "data": -1, "payload": -1 }));
    let seed = user.seed().unwrap();
    let file = format!(
        "-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    Login {
        server: format!(
            "operator: {operator_jwt}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}, {} }}",
            system.public_key(),
            of_account(&system),
            of_account(&account),
        ),
        credentials: Credentials::file(&file.into()).unwrap(),
        secrets: vec![seed, user_jwt],
    }
}

fn jwt(issuer: &KeyPair, subject: &KeyPair, kind: &str, mut claims: Value) -> String {
    claims["type"] = kind.into();
    claims["version"] = 2.into();
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let body = json!({
        "jti": "1", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": kind,
        "nats": claims,
    });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(&body));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}
