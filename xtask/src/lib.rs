//! What Muster's checks and demonstrations stand on: real servers, started for one run and gone after it.
//!
//! The integration tests of the other crates use this library to start servers of their own, where those that
//! `cargo xtask test` shares among them are not enough.

#![expect(
    clippy::print_stdout,
    reason = "telling the person at the terminal what happens is this crate's job"
)]

pub mod pin;
pub mod services;
pub mod tool;
pub mod worker;
