//! The commands of the binary beside serving, one a file.

pub(crate) mod ask;
pub(crate) mod check;
mod communities;
pub(crate) mod deadletters;
pub(crate) mod describe;
pub(crate) mod erasure_list;
pub(crate) mod erasures;
pub(crate) mod health;
pub(crate) mod verify;
