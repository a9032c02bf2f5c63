//! Against real nats-servers, which xtask's library starts.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod accounts;
mod broker;
mod changes;
mod cluster;
mod dead_letters;
mod events;
mod fitness;
mod gate;
mod hostile;
mod login;
mod losses;
mod service;
