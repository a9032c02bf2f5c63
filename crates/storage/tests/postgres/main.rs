//! What storage promises, proved against a real PostgreSQL. `cargo xtask test` starts one.
#![cfg(test)]

mod awards;
mod cursors;
mod erasure;
mod faults;
mod lists;
mod migrations;
mod model;
mod plans;
mod probe;
mod role;
mod schema;
mod search;
mod standing;
mod support;
mod tiers;
mod verify;
