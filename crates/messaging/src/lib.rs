//! Muster over NATS.
//!
//! Nothing but this crate names `async_nats`. A [`connection::Connection`] is made only of servers that have passed the
//! TLS policy ([`connection::Transport`]); [`service`] answers questions over it, [`events`] reads what the chat gateway
//! publishes, and [`client`] asks. What can be asked is in [`api`].

pub mod api;
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

/// Runs the examples of the README with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct Readme;
