//! Certificates and keys for TLS: read from files, checked, and rotated in place.

pub mod certificate;
pub mod file;
pub mod key;
pub mod material;
pub mod pem;
