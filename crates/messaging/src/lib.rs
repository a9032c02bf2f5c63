//! Muster over NATS. A sibling service asks in a few lines:
//!
//! ```no_run
//! use muster_messaging::{Client, ClientError, NatsConfig, TlsFiles, api::profiles, domain::GuildId};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let file = |name: &str| Some(format!("/etc/muster/{name}").into());
//! let files = TlsFiles { ca: file("ca.crt"), certificate: file("tls.crt"), key: file("tls.key") };
//! let config = NatsConfig::production(["tls://nats.example:4222"], &files, "my-service")?;
//! // As `infra/nats` wants it: TLS before the server says anything.
//! let client = Client::connect(NatsConfig { tls_first: true, ..config }).await?;
//! let community = client.find_community(GuildId::parse("81384788765712384")?).await?.community_id;
//! match client.community(community).ask(&profiles::Ranked::first(10)).await {
//!     Ok(page) => println!("{} of at most {}", page.items.len(), page.limit),
//!     Err(ClientError::Service { code, message, .. }) => println!("refused, {code}: {message}"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Nothing but this crate names `async_nats`. A [`connection::Connection`] is made only of servers that have passed the
//! TLS policy ([`connection::Transport`]); [`service`] answers questions over it, [`events`] reads what the chat gateway
//! publishes, and [`client`] asks. What can be asked is in [`api`].

pub mod api;
pub mod changes;
pub mod client;
pub mod connection;
pub mod events;
mod header;
mod integer;
pub mod log_budget;
pub mod replicas;
pub mod request;
pub mod service;
mod share;
pub mod tls;

pub use client::{Client, ClientError, CommunityClient, EventPublisher, PublishError};
pub use connection::{Connection, ConnectionError, Credentials, NatsConfig, Transport, TransportError};
/// The types of what is asked and answered.
pub use muster_domain as domain;
pub use secrecy::SecretString;
pub use tls::material::{MinimumVersion, TlsFiles};

/// Runs the examples of the README with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
