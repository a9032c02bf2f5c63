//! One request over NATS by hand: for an operator, who then needs no second tool.

use std::io::Write;

use muster_messaging::api::Caller;
use muster_messaging::client::{Answer, Client};
use muster_messaging::connection::Connection;

use crate::connect;
use crate::failure::Failure;
use crate::settings::{Nats, SettingsError};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// The subject, such as muster.v1.communities.find.
    subject: String,
    /// The body, which is JSON where the service is asked.
    #[arg(default_value = "")]
    body: String,
    /// On whose behalf (the header Muster-Caller).
    #[arg(long)]
    caller: Option<String>,
}

/// Prints the answer's body; an error when the answer is one, or there is none.
pub(crate) async fn ask(nats: &Nats, arguments: &Arguments) -> Result<(), Failure> {
    let mut client = Client::new(Connection::open(connect::nats(nats)?).await?);
    if let Some(caller) = &arguments.caller {
        let caller =
            Caller::parse(caller).map_err(|error| SettingsError::new(format!("--caller {error}")))?;
        client = client.on_behalf_of(caller);
    }
    let Answer { mut body, is_error } =
        client.ask_by_hand(&arguments.subject, arguments.body.clone().into_bytes()).await?;
    body.push(b'\n');
    std::io::stdout().write_all(&body)?;
    if is_error { Err(Failure::Refused) } else { Ok(()) }
}
