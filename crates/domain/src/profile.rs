use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    Activity, Badge, BadgeOperation, Conviction, Cursor, Nym, ProfileId, Rank, ScoreTier, Tenure, Tier,
    TierChange, UserId, Wallet,
};

/// One member of one community.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Its id within the community.
    pub profile_id: ProfileId,
    /// The person's id on the chat platform.
    pub user_id: UserId,
    /// Their wallet, if they linked one.
    pub wallet: Option<Wallet>,
    /// The display name.
    pub nym: Nym,
    /// The score that ranks them.
    pub conviction: Conviction,
    /// Their activity.
    pub activity: Activity,
    /// The tier they hold; `None` below every tier.
    pub tier: Option<Tier>,
    /// How many unrevoked badges they hold.
    pub badge_count: u32,
    /// When they joined.
    pub joined_at: OffsetDateTime,
    /// When they were last active.
    pub last_active_at: Option<OffsetDateTime>,
    /// False for one who has left, is hidden or is erased.
    pub visible: bool,
}

/// A profile and its competition rank by conviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankedProfile {
    /// The profile.
    pub profile: Profile,
    /// Its rank.
    pub rank: Rank,
}

/// A profile and its competition rank by number of badges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadgeStanding {
    /// The profile.
    pub profile: Profile,
    /// Its rank by badges.
    pub badge_rank: Rank,
}

/// A profile and its tenure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenuredProfile {
    /// The profile.
    pub profile: Profile,
    /// How long they have been there.
    pub tenure: Tenure,
}

/// A profile and all its standings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileDetail {
    /// The profile.
    pub profile: Profile,
    /// Its rank by conviction.
    pub rank: Rank,
    /// Its rank by badges.
    pub badge_rank: Rank,
    /// How long they have been there.
    pub tenure: Tenure,
}

/// A profile on its way to its next score tier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The profile.
    pub profile: Profile,
    /// The tier it will reach next.
    pub next_tier: Tier,
    /// How much conviction is missing: at least 1.
    pub distance: i64,
}

/// Where a member stands among the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The profile's id.
    pub profile_id: ProfileId,
    /// Their rank.
    pub rank: Rank,
    /// Their score.
    pub conviction: Conviction,
    /// How far the nearest higher score lies above; `None` at the top.
    pub distance_above: Option<i64>,
    /// How far the nearest lower score lies below; `None` at the bottom.
    pub distance_below: Option<i64>,
    /// The next score tier; `None` in the highest.
    pub next_tier: Option<ScoreTier>,
    /// How much conviction is missing to it.
    pub distance_to_next_tier: Option<i64>,
    /// How much conviction is missing to the entry rank: 0 for those who hold it, `None` when the policy has no rank
    /// tiers.
    pub distance_to_entry: Option<i64>,
    /// Whether they hold one of the last tenth of the entry ranks.
    pub at_risk: bool,
}

/// How to find one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// By its id.
    ProfileId(ProfileId),
    /// By the person's id on the chat platform.
    UserId(UserId),
    /// By wallet.
    Wallet(Wallet),
    /// By display name, without regard to case; of several who share it, the one who joined first.
    Nym(Nym),
}

/// What a directory is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectorySort {
    /// Display name.
    #[default]
    Nym,
    /// Time since joining.
    Tenure,
    /// Number of badges.
    Badges,
}

/// Which way a list runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Smallest first.
    Asc,
    /// Largest first.
    Desc,
}

impl DirectorySort {
    /// The direction of a sort for which none was asked: names from A, the others from the largest.
    #[must_use]
    pub const fn default_direction(self) -> Direction {
        match self {
            Self::Nym => Direction::Asc,
            Self::Tenure | Self::Badges => Direction::Desc,
        }
    }
}

impl fmt::Display for DirectorySort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nym => "nym",
            Self::Tenure => "tenure",
            Self::Badges => "badges",
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asc => "asc",
            Self::Desc => "desc",
        })
    }
}

/// Everything that is held on a person, one page of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The profile.
    pub profile: Profile,
    /// The user name, which the nym is where there is no nickname.
    pub username: Option<Nym>,
    /// Badges, revoked ones among them.
    pub badges: Vec<Badge>,
    /// Awards and revocations that are no badges.
    pub operations: Vec<BadgeOperation>,
    /// What was added to the activity since it was last set. What is older than the ids of its events is summed by month or year.
    pub additions: Vec<Addition>,
    /// Changes of tier.
    pub tier_changes: Vec<TierChange>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<Cursor>,
}

/// An addition to a member's activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addition {
    /// When it was; of a sum, when the last of it was.
    pub at: OffsetDateTime,
    /// How much.
    pub amount: Activity,
}

/// One page of the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryPage {
    /// The members.
    pub items: Vec<TenuredProfile>,
    /// Where the next page begins; `None` on the last.
    pub next: Option<Cursor>,
    /// The page size that was applied.
    pub limit: u32,
    /// How many members the whole list has.
    pub total: u64,
}

impl DirectoryPage {
    /// How many rows of a directory can be reached by page number; past them only a cursor does.
    pub const MAX_PAGED_ROWS: u32 = 10_000;
}
