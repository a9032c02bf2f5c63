//! What stands in the messages: JSON, snake_case, times in RFC 3339 UTC. Requests refuse unknown fields, answers ignore
//! them when they are read, so that an older client reads a newer service.

pub mod answer;
pub mod error;
mod field;
pub mod limit;
pub mod query;
pub mod request;
