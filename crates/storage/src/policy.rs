//! What a community has chosen for itself, as it is read and kept for a short while.

use std::collections::HashMap;
use std::time::Instant;

use muster_domain::{TenurePolicy, Tier, TierPolicy};

/// The tiers and tenures of a community.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) tiers: TierPolicy,
    pub(crate) tenure: TenurePolicy,
    /// The names of all tiers by their numbers, those of earlier policies among them. A number is one name's for ever.
    pub(crate) names: HashMap<i16, Tier>,
    /// When it was read.
    pub(crate) read_at: Instant,
}

impl Policy {
    /// Whether all of these tiers are known here.
    pub(crate) fn names_all(&self, tiers: impl IntoIterator<Item = Option<i16>>) -> bool {
        tiers.into_iter().flatten().all(|tier| self.names.contains_key(&tier))
    }

    /// The name of a tier.
    pub(crate) fn name(&self, tier: Option<i16>) -> Option<Tier> {
        self.names.get(&tier?).cloned()
    }

    /// The number of a tier.
    pub(crate) fn number(&self, name: &Tier) -> Option<i16> {
        self.names.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
    }
}
