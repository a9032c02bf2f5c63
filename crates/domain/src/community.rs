use crate::Tier;
use crate::text::shown_type;

shown_type!(
    /// A community's name, as its chat server bears it: 1 to 100 characters, cleaned as a nym is.
    CommunityName, 100, 1200
);

/// How many visible members hold a tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierCount {
    /// The tier; `None` counts those below every tier.
    pub tier: Option<Tier>,
    /// Its visible members.
    pub members: u64,
}

/// A community in numbers. Visible members only; a week is the current UTC day and the six before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// All visible members.
    pub members: u64,
    /// Members of each tier of the policy, highest first, then of none.
    pub tiers: Vec<TierCount>,
    /// The sum of their conviction, held within what JSON clients can read exactly.
    pub conviction_total: i64,
    /// Unrevoked badges that they hold.
    pub badges: u64,
    /// Members whose last activity was this week.
    pub active_this_week: u64,
    /// Members who joined this week.
    pub new_this_week: u64,
    /// Tier promotions this week.
    pub promotions_this_week: u64,
    /// Badges awarded this week and not revoked since.
    pub badges_this_week: u64,
}
