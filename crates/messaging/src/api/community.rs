//! `community.stats` and `communities.find`: the community itself.

use muster_domain::{CommunityId, CommunityName, GuildId, Tier};
use serde::{Deserialize, Serialize};

use super::endpoint::endpoint;

endpoint! {
    "community.stats" -> CommunityStats, "`members`, `tiers` (each `tier` with its `members`), `conviction_total`, \
        `badges`, `active_this_week`, `new_this_week`, `promotions_this_week`, `badges_this_week`; a week is this UTC day \
        and the six before";

    /// The community in numbers.
    pub struct Stats {}
}

/// A community in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommunityStats {
    /// All members.
    pub members: u64,
    /// Members of each tier, highest first, then of none.
    pub tiers: Vec<TierCount>,
    /// The sum of their conviction.
    pub conviction_total: i64,
    /// Unrevoked badges that they hold.
    pub badges: u64,
    /// Members whose last activity was this week.
    pub active_this_week: u64,
    /// Members who joined this week.
    pub new_this_week: u64,
    /// Promotions this week.
    pub promotions_this_week: u64,
    /// Badges awarded this week.
    pub badges_this_week: u64,
}

/// How many members hold a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierCount {
    /// The tier; `None` counts those below every tier.
    pub tier: Option<Tier>,
    /// Its members.
    pub members: u64,
}

impl From<muster_domain::Stats> for CommunityStats {
    fn from(stats: muster_domain::Stats) -> Self {
        let count = |count: muster_domain::TierCount| TierCount { tier: count.tier, members: count.members };
        Self {
            members: stats.members,
            tiers: stats.tiers.into_iter().map(count).collect(),
            conviction_total: stats.conviction_total,
            badges: stats.badges,
            active_this_week: stats.active_this_week,
            new_this_week: stats.new_this_week,
            promotions_this_week: stats.promotions_this_week,
            badges_this_week: stats.badges_this_week,
        }
    }
}

endpoint! {
    "communities.find" -> Community, "`community_id`, `name`, `active`, `changes` (the number of the community's last \
        [change](#changes)) (on `muster.v1.communities.find`)";

    /// A community's id by its chat server's.
    pub struct Find {
        /// The id of its chat server.
        pub guild_id: GuildId,
    }

    const IS_OF_COMMUNITY: bool = false;
}

/// A community.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Community {
    /// Its id.
    pub community_id: CommunityId,
    /// Its name, if it is known.
    pub name: Option<CommunityName>,
    /// Whether its chat server still has it.
    pub active: bool,
    /// The number of its last change: who has read its lists follows from there.
    pub changes: u64,
}
