//! What rows of several endpoints are made of.

use muster_domain::{
    Activity, Awarder, BadgeId, BadgeKind, Conviction, Nym, ProfileId, Reason, Tier, UserId, Wallet,
};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset};

/// Dates are answered in UTC.
pub(super) fn utc(date: OffsetDateTime) -> OffsetDateTime {
    date.to_offset(UtcOffset::UTC)
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Its id within the community.
    pub profile_id: ProfileId,
    /// The person's id on the chat platform.
    pub user_id: UserId,
    /// Their wallet.
    pub wallet: Option<Wallet>,
    /// The display name.
    pub nym: Nym,
    /// The score that ranks them.
    pub conviction: Conviction,
    /// Their activity.
    pub activity: Activity,
    /// The tier they hold.
    pub tier: Option<Tier>,
    /// How many unrevoked badges they hold.
    pub badge_count: u32,
    /// When they joined.
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
    /// When they were last active.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_active_at: Option<OffsetDateTime>,
}

impl From<muster_domain::Profile> for Profile {
    fn from(profile: muster_domain::Profile) -> Self {
        Self {
            profile_id: profile.profile_id,
            user_id: profile.user_id,
            wallet: profile.wallet,
            nym: profile.nym,
            conviction: profile.conviction,
            activity: profile.activity,
            tier: profile.tier,
            badge_count: profile.badge_count,
            joined_at: utc(profile.joined_at),
            last_active_at: profile.last_active_at.map(utc),
        }
    }
}

/// One badge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Badge {
    /// The award's id.
    pub badge_id: BadgeId,
    /// Whose it is.
    pub profile_id: ProfileId,
    /// What it is for.
    pub kind: BadgeKind,
    /// Why it was awarded.
    pub reason: Option<Reason>,
    /// Who awarded it.
    pub awarded_by: Option<Awarder>,
    /// When it was awarded.
    #[serde(with = "time::serde::rfc3339")]
    pub awarded_at: OffsetDateTime,
}

impl From<muster_domain::Badge> for Badge {
    fn from(badge: muster_domain::Badge) -> Self {
        Self {
            badge_id: badge.badge_id,
            profile_id: badge.profile_id,
            kind: badge.kind,
            reason: badge.reason,
            awarded_by: badge.awarded_by,
            awarded_at: utc(badge.awarded_at),
        }
    }
}
