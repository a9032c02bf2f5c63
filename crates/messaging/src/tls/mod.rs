//! The gate: what must be true of servers and certificates before anything is sent.

pub mod certificate;
pub mod file;
pub mod key;
pub mod material;
pub mod pem;
