//! What storage promises, proved against a real PostgreSQL. `cargo xtask test` starts one.
#![cfg(test)]

mod applied;
mod awards;
mod changes;
mod cursors;
mod erasure;
mod faults;
mod lists;
mod migrations;
mod model;
mod nodes;
mod plans;
mod probe;
mod released;
mod role;
mod schema;
mod search;
mod standing;
mod statements;
mod support;
mod tiers;
mod verify;
