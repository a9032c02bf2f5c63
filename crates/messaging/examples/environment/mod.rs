//! What both examples take from the environment: the variables by which `muster-worker ask` connects, and the community.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use muster_messaging::api::community::Community;
use muster_messaging::{Client, Connection, NatsConfig, TlsFiles, domain::GuildId};

/// A variable's value, if it is set to something.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Takes up certificates that were replaced, for as long as the process runs.
async fn take_up_certificates(connection: Connection) {
    loop {
        tokio::time::sleep(Duration::from_mins(1)).await;
        if let Err(error) = connection.reload().await {
            eprintln!("{error}: {:?}", error.source());
        }
    }
}

/// Connects, and finds the community of `GUILD`, the chat server's id.
pub(crate) async fn connect(name: &str) -> Result<(Client, Community), Box<dyn Error>> {
    let required = |name: &str| variable(name).ok_or_else(|| format!("set {name}: see README.md"));
    let file = |name: &str| variable(name).map(PathBuf::from);
    let files = TlsFiles {
        ca: file("MUSTER__NATS__CA_FILE"),
        certificate: file("MUSTER__NATS__CERTIFICATE_FILE"),
        key: file("MUSTER__NATS__KEY_FILE"),
    };
    let urls = required("MUSTER__NATS__URLS")?;
    let config = NatsConfig {
        tls_first: variable("MUSTER__NATS__TLS_FIRST").is_some_and(|value| value == "true"),
        ..NatsConfig::production(urls.split(',').map(str::trim), &files, name)?
    };
    let guild = GuildId::parse(required("GUILD")?)?;
    let client = Client::connect(config).await?;
    tokio::spawn(take_up_certificates(client.connection().clone()));
    let community = client.find_community(guild).await?;
    Ok((client, community))
}
