//! Whatever is read of a community: profiles, boards, the directory, badges, tiers and counts.

pub(crate) mod badges;
mod board;
pub(crate) mod date;
pub(crate) mod directory;
pub(crate) mod profile;
mod ranks;
mod search;
mod stats;
pub(crate) mod tiers;
