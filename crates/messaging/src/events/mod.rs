//! What the chat gateway publishes: each event read, its effect applied, then acknowledged.

pub mod consumer;
pub mod dead_letter;
pub mod envelope;
pub mod fault;
pub mod fitness;
mod lane;
mod losses;
mod reader;
pub mod stream;
mod waiting;
