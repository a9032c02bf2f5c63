//! Real servers, started for one run of `cargo xtask` or of any crate's integration tests, and gone after it.

#![expect(clippy::print_stdout, reason = "the person at the terminal is told what is fetched")]

pub mod services;
pub mod tool;
pub mod worker;
