//! Real servers, started for one run and gone after it.
//!
//! `cargo xtask` and the integration tests of the other crates use this library.

#![expect(clippy::print_stdout, reason = "the person at the terminal is told what is fetched")]

pub mod services;
pub mod tool;
pub mod worker;
