//! Against a real nats-server: `$MUSTER_TEST_NATS_SERVER`, else the one on the PATH.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod broker;
mod cluster;
mod dead_letters;
mod events;
mod fitness;
mod gate;
mod hostile;
mod login;
mod losses;
mod service;
