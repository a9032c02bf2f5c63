//! What an operator asks of a community's record.

mod applied;
mod badges;
mod erasure;
mod export;
mod profile;
pub(crate) mod restored;
mod tiers;
