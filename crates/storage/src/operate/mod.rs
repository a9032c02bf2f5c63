//! What an operator asks of a community's record.

mod applied;
mod badges;
pub(crate) mod changes;
mod erasure;
mod export;
mod profile;
pub(crate) mod restored;
mod tiers;
