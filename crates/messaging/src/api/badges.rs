//! `badges.*`: what badges there are, and who has most.

use muster_domain::lists::{BADGES_KINDS, BADGES_LEADERBOARD};
use muster_domain::{BadgeKind, Cursor, Rank};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::endpoint::endpoint;
use super::page::{Page, Rows, pages};
use super::row::{Profile, utc};

endpoint! {
    BADGES_LEADERBOARD -> Page<BadgeStanding>,
    "page of profiles by `badge_count`, then earliest joined, each with `badge_rank`";

    /// Profiles by number of badges.
    #[derive(Default)]
    pub struct Leaderboard {
        /// How many at most.
        pub limit: Rows<10>,
        /// Where to begin.
        pub cursor: Option<Cursor>,
    }

    const MAY_LAG: bool = true;
}

/// A profile and its rank by badges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadgeStanding {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// Its competition rank by number of badges.
    pub badge_rank: Rank,
}

impl From<muster_domain::BadgeStanding> for BadgeStanding {
    fn from(standing: muster_domain::BadgeStanding) -> Self {
        Self { profile: standing.profile.into(), badge_rank: standing.badge_rank }
    }
}

endpoint! {
    BADGES_KINDS -> Page<KindCount>, "page of `kind`, `holders`, `first_awarded_at`";

    /// The community's badge kinds.
    #[derive(Default)]
    pub struct Kinds {
        /// How many at most.
        pub limit: Rows<100>,
        /// Where to begin.
        pub cursor: Option<Cursor>,
    }

    const MAY_LAG: bool = true;
}

/// A badge kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindCount {
    /// The kind.
    pub kind: BadgeKind,
    /// How many profiles hold it.
    pub holders: u64,
    /// When it was first awarded.
    #[serde(with = "time::serde::rfc3339")]
    pub first_awarded_at: OffsetDateTime,
}

impl From<muster_domain::KindCount> for KindCount {
    fn from(count: muster_domain::KindCount) -> Self {
        Self { kind: count.kind, holders: count.holders, first_awarded_at: utc(count.first_awarded_at) }
    }
}

pages! { Leaderboard, Kinds }
