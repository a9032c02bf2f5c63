//! `tiers.*`: who changes tier, and what it takes.

use muster_domain::lists::{TIERS_CHANGES, TIERS_PROGRESSION};
use muster_domain::{Conviction, Cursor, Movement, Nym, ProfileId, Rank, Tier};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::endpoint::endpoint;
use super::page::{Page, Rows, pages};
use super::row::{Profile, utc};

endpoint! {
    TIERS_PROGRESSION -> Page<Progress>,
    "page of profiles closest below their next score tier, then earliest joined, with `next_tier` and `distance`";

    /// Members closest below their next score tier.
    #[derive(Default)]
    pub struct Progression {
        /// How many at most.
        pub limit: Rows<10>,
        /// Where to begin.
        pub cursor: Option<Cursor>,
    }

    const MAY_LAG: bool = true;
}

/// A profile on its way to its next score tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// The tier it reaches next.
    pub next_tier: Tier,
    /// How much conviction is missing.
    pub distance: i64,
}

impl From<muster_domain::Progress> for Progress {
    fn from(progress: muster_domain::Progress) -> Self {
        Self { profile: progress.profile.into(), next_tier: progress.next_tier, distance: progress.distance }
    }
}

endpoint! {
    TIERS_CHANGES -> Page<TierChange>,
    "page of `profile_id`, `nym`, `from`, `to`, `movement` (`promotion` or `demotion`), `at`, newest first";

    /// Promotions and demotions.
    #[derive(Default)]
    pub struct Changes {
        /// How many at most.
        pub limit: Rows<5>,
        /// Where to begin.
        pub cursor: Option<Cursor>,
    }

    const MAY_LAG: bool = true;
}

/// One change of one member's tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierChange {
    /// Whose.
    pub profile_id: ProfileId,
    /// Their display name now.
    pub nym: Nym,
    /// The tier before.
    pub from: Option<Tier>,
    /// The tier after.
    pub to: Option<Tier>,
    /// Up or down.
    pub movement: Movement,
    /// When it was recorded.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl From<muster_domain::TierChange> for TierChange {
    fn from(change: muster_domain::TierChange) -> Self {
        Self {
            profile_id: change.profile_id,
            nym: change.nym,
            from: change.from,
            to: change.to,
            movement: change.movement,
            at: utc(change.at),
        }
    }
}

endpoint! {
    "tiers.threshold" -> TierThreshold,
    "`entry_rank`, `score` needed for it, `eligible` and `waiting` members, `gap` to the first who waits";

    /// What it takes to hold a rank tier.
    pub struct Threshold {}
}

/// What it takes to hold a rank tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierThreshold {
    /// The last rank that holds one.
    pub entry_rank: Option<Rank>,
    /// The lowest conviction that has that rank.
    pub score: Option<Conviction>,
    /// How many members hold an entry rank.
    pub eligible: u64,
    /// How many do not.
    pub waiting: u64,
    /// How far the best of those who wait lies below the score.
    pub gap: Option<i64>,
}

impl From<muster_domain::TierThreshold> for TierThreshold {
    fn from(threshold: muster_domain::TierThreshold) -> Self {
        Self {
            entry_rank: threshold.entry_rank,
            score: threshold.score,
            eligible: threshold.eligible,
            waiting: threshold.waiting,
            gap: threshold.gap,
        }
    }
}

pages! { Progression, Changes }
