//! What the tests share: a database each, plain SQL beside the crate's own, events, and what must always hold.

pub(crate) mod cluster;
pub(crate) mod consistency;
pub(crate) mod database;
pub(crate) mod events;
pub(crate) mod reference;
pub(crate) mod tied;
