//! What storage promises, proved against a real PostgreSQL. `cargo xtask test` starts one.
#![cfg(test)]

mod model;
mod support;
