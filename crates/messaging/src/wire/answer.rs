//! Answers: [`Answer`] is what a handler gives, in the domain's types; the structs beside it are what stands on the wire,
//! and what a client gets. A reader ignores fields that it does not know.

use std::num::NonZeroU32;

use muster_domain::{
    Activity, Awarder, BadgeId, BadgeKind, CommunityId, CommunityName, Conviction, Cursor, DirectoryPage,
    Movement, Nym, ProfileId, Rank, Reason, Tenure, Tier, UserId, Wallet,
};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset};

/// What a handler answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To `profiles.ranked` and `profiles.around`.
    Ranked(muster_domain::Page<muster_domain::RankedProfile>),
    /// To `profiles.get`.
    Detail(Box<muster_domain::ProfileDetail>),
    /// To `profiles.position`.
    Position(muster_domain::Position),
    /// To `profiles.active` and `profiles.search`.
    Profiles(muster_domain::Page<muster_domain::Profile>),
    /// To `profiles.badges`.
    Badges(muster_domain::Page<muster_domain::Badge>),
    /// To `badges.leaderboard`.
    Leaderboard(muster_domain::Page<muster_domain::BadgeStanding>),
    /// To `badges.kinds`.
    Kinds(muster_domain::Page<muster_domain::KindCount>),
    /// To `tiers.progression`.
    Progression(muster_domain::Page<muster_domain::Progress>),
    /// To `tiers.changes`.
    Changes(muster_domain::Page<muster_domain::TierChange>),
    /// To `tiers.threshold`.
    Threshold(muster_domain::TierThreshold),
    /// To `directory.list`.
    Directory {
        /// The page.
        page: DirectoryPage,
        /// Its number, when it was asked for by number.
        number: Option<NonZeroU32>,
    },
    /// To `community.stats`.
    Stats(muster_domain::Stats),
    /// To `admin.badges.award`.
    Awarded(muster_domain::Award),
    /// To `admin.badges.revoke`.
    Revoked(muster_domain::Badge),
    /// To `admin.profiles.hide` and `admin.profiles.show`.
    Visibility(Box<muster_domain::Profile>),
    /// To `admin.profiles.export`.
    Export(Box<Export>),
    /// To `admin.profiles.erase`.
    Erased(ProfileId),
    /// To `admin.ratelimit.clear`: how many counters.
    Cleared(u64),
    /// To `communities.find`.
    Community {
        /// Its id.
        community: CommunityId,
        /// Its name, if it is known.
        name: Option<CommunityName>,
        /// Whether its chat server still has it.
        active: bool,
    },
}

/// A piece of all that is held on a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The profile.
    pub profile: muster_domain::Profile,
    /// Badges, revoked ones among them.
    pub badges: Vec<muster_domain::Badge>,
    /// Changes of tier.
    pub tier_changes: Vec<muster_domain::TierChange>,
    /// Where the next piece begins; `None` on the last.
    pub next: Option<Cursor>,
}

impl Answer {
    /// The answer as JSON.
    ///
    /// # Errors
    /// A date that has no RFC 3339 form, which none of a four-digit year lacks.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Ranked(page) => json(&Page::of(page, Ranked::from)),
            Self::Detail(detail) => json(&Detail::from(detail.as_ref())),
            Self::Position(position) => json(&Position::from(position)),
            Self::Profiles(page) => json(&Page::of(page, Profile::from)),
            Self::Badges(page) => json(&Page::of(page, Badge::from)),
            Self::Leaderboard(page) => json(&Page::of(page, Standing::from)),
            Self::Kinds(page) => json(&Page::of(page, Kind::from)),
            Self::Progression(page) => json(&Page::of(page, Progress::from)),
            Self::Changes(page) => json(&Page::of(page, Change::from)),
            Self::Threshold(threshold) => json(&Threshold::from(threshold)),
            Self::Directory { page, number } => json(&Directory::of(page, *number)),
            Self::Stats(stats) => json(&Stats::from(stats)),
            Self::Awarded(award) => json(&Award::from(award)),
            Self::Revoked(badge) => json(&Revocable::from(badge)),
            Self::Visibility(profile) => json(&VisibleProfile::from(profile.as_ref())),
            Self::Export(export) => json(&PersonalData::from(export.as_ref())),
            Self::Erased(profile_id) => json(&Erased { profile_id: *profile_id, erased: true }),
            Self::Cleared(cleared) => json(&Cleared { cleared: *cleared }),
            Self::Community { community, name, active } => {
                json(&Community { community_id: *community, name: name.clone(), active: *active })
            }
        }
    }
}

fn json(answer: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(answer)
}

fn utc(date: OffsetDateTime) -> OffsetDateTime {
    date.to_offset(UtcOffset::UTC)
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// The cursor of the next page; `None` on the last.
    pub next: Option<String>,
    /// The page size that was applied.
    pub limit: u32,
}

impl<T> Page<T> {
    fn of<'a, U>(page: &'a muster_domain::Page<U>, item: impl Fn(&'a U) -> T) -> Self {
        Self {
            items: page.items.iter().map(item).collect(),
            next: page.next.as_ref().map(ToString::to_string),
            limit: page.limit,
        }
    }
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

impl From<&muster_domain::Profile> for Profile {
    fn from(profile: &muster_domain::Profile) -> Self {
        Self {
            profile_id: profile.profile_id,
            user_id: profile.user_id.clone(),
            wallet: profile.wallet.clone(),
            nym: profile.nym.clone(),
            conviction: profile.conviction,
            activity: profile.activity,
            tier: profile.tier.clone(),
            badge_count: profile.badge_count,
            joined_at: utc(profile.joined_at),
            last_active_at: profile.last_active_at.map(utc),
        }
    }
}

/// A profile and its rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// Its competition rank by conviction.
    pub rank: Rank,
}

impl From<&muster_domain::RankedProfile> for Ranked {
    fn from(ranked: &muster_domain::RankedProfile) -> Self {
        Self { profile: (&ranked.profile).into(), rank: ranked.rank }
    }
}

/// A profile and all its standings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// Its competition rank by conviction.
    pub rank: Rank,
    /// Its competition rank by badges.
    pub badge_rank: Rank,
    /// How long they have been there.
    pub tenure: Tenure,
}

impl From<&muster_domain::ProfileDetail> for Detail {
    fn from(detail: &muster_domain::ProfileDetail) -> Self {
        Self {
            profile: (&detail.profile).into(),
            rank: detail.rank,
            badge_rank: detail.badge_rank,
            tenure: detail.tenure,
        }
    }
}

/// Where a member stands among the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Whose.
    pub profile_id: ProfileId,
    /// Their rank.
    pub rank: Rank,
    /// Their score.
    pub conviction: Conviction,
    /// How far the nearest higher score lies above.
    pub distance_above: Option<i64>,
    /// How far the nearest lower score lies below.
    pub distance_below: Option<i64>,
    /// The next score tier.
    pub next_tier: Option<Tier>,
    /// The conviction at which it is reached.
    pub next_tier_at: Option<Conviction>,
    /// How much conviction is missing to it.
    pub distance_to_next_tier: Option<i64>,
    /// How much conviction is missing to the entry rank; 0 for those who hold it.
    pub distance_to_entry: Option<i64>,
    /// Whether they hold one of the last entry ranks.
    pub at_risk: bool,
}

impl From<&muster_domain::Position> for Position {
    fn from(position: &muster_domain::Position) -> Self {
        Self {
            profile_id: position.profile_id,
            rank: position.rank,
            conviction: position.conviction,
            distance_above: position.distance_above,
            distance_below: position.distance_below,
            next_tier: position.next_tier.as_ref().map(|next| next.tier.clone()),
            next_tier_at: position.next_tier.as_ref().map(|next| next.from),
            distance_to_next_tier: position.distance_to_next_tier,
            distance_to_entry: position.distance_to_entry,
            at_risk: position.at_risk,
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

impl From<&muster_domain::Badge> for Badge {
    fn from(badge: &muster_domain::Badge) -> Self {
        Self {
            badge_id: badge.badge_id,
            profile_id: badge.profile_id,
            kind: badge.kind.clone(),
            reason: badge.reason.clone(),
            awarded_by: badge.awarded_by.clone(),
            awarded_at: utc(badge.awarded_at),
        }
    }
}

/// One badge and whether it was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocable {
    /// The badge.
    #[serde(flatten)]
    pub badge: Badge,
    /// When it was revoked; `None` while it is held.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// Who revoked it.
    pub revoked_by: Option<Awarder>,
    /// Why it was revoked.
    pub revoke_reason: Option<Reason>,
}

impl From<&muster_domain::Badge> for Revocable {
    fn from(badge: &muster_domain::Badge) -> Self {
        Self {
            badge: badge.into(),
            revoked_at: badge.revoked_at.map(utc),
            revoked_by: badge.revoked_by.clone(),
            revoke_reason: badge.revoke_reason.clone(),
        }
    }
}

/// The badge that is held after an award.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Award {
    /// The badge.
    #[serde(flatten)]
    pub badge: Badge,
    /// False when it was held already.
    pub created: bool,
}

impl From<&muster_domain::Award> for Award {
    fn from(award: &muster_domain::Award) -> Self {
        Self { badge: (&award.badge).into(), created: award.created }
    }
}

/// A profile and its rank by badges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// Its competition rank by number of badges.
    pub badge_rank: Rank,
}

impl From<&muster_domain::BadgeStanding> for Standing {
    fn from(standing: &muster_domain::BadgeStanding) -> Self {
        Self { profile: (&standing.profile).into(), badge_rank: standing.badge_rank }
    }
}

/// A badge kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind {
    /// The kind.
    pub kind: BadgeKind,
    /// How many profiles hold it.
    pub holders: u64,
    /// When it was first awarded.
    #[serde(with = "time::serde::rfc3339")]
    pub first_awarded_at: OffsetDateTime,
}

impl From<&muster_domain::KindCount> for Kind {
    fn from(count: &muster_domain::KindCount) -> Self {
        Self {
            kind: count.kind.clone(),
            holders: count.holders,
            first_awarded_at: utc(count.first_awarded_at),
        }
    }
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

impl From<&muster_domain::Progress> for Progress {
    fn from(progress: &muster_domain::Progress) -> Self {
        Self {
            profile: (&progress.profile).into(),
            next_tier: progress.next_tier.clone(),
            distance: progress.distance,
        }
    }
}

/// Up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To a higher tier.
    Promotion,
    /// To a lower tier, or to none.
    Demotion,
}

/// One change of one member's tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Whose.
    pub profile_id: ProfileId,
    /// Their display name now.
    pub nym: Nym,
    /// The tier before.
    pub from: Option<Tier>,
    /// The tier after.
    pub to: Option<Tier>,
    /// Up or down.
    pub movement: Direction,
    /// When it was recorded.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl From<&muster_domain::TierChange> for Change {
    fn from(change: &muster_domain::TierChange) -> Self {
        Self {
            profile_id: change.profile_id,
            nym: change.nym.clone(),
            from: change.from.clone(),
            to: change.to.clone(),
            movement: match change.movement {
                Movement::Promotion => Direction::Promotion,
                Movement::Demotion => Direction::Demotion,
            },
            at: utc(change.at),
        }
    }
}

/// What it takes to hold a rank tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threshold {
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

impl From<&muster_domain::TierThreshold> for Threshold {
    fn from(threshold: &muster_domain::TierThreshold) -> Self {
        Self {
            entry_rank: threshold.entry_rank,
            score: threshold.score,
            eligible: threshold.eligible,
            waiting: threshold.waiting,
            gap: threshold.gap,
        }
    }
}

/// A profile and its tenure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenured {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// How long they have been there.
    pub tenure: Tenure,
}

/// One page of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The members.
    pub items: Vec<Tenured>,
    /// The cursor of the next page; `None` on the last.
    pub next: Option<String>,
    /// The page size that was applied.
    pub limit: u32,
    /// How many members the whole list has.
    pub total: u64,
    /// How many pages of this size the whole list has.
    pub total_pages: u64,
    /// The page's number, when it was asked for by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<NonZeroU32>,
}

impl Directory {
    fn of(page: &DirectoryPage, number: Option<NonZeroU32>) -> Self {
        let tenured = |item: &muster_domain::TenuredProfile| Tenured {
            profile: (&item.profile).into(),
            tenure: item.tenure,
        };
        Self {
            items: page.items.iter().map(tenured).collect(),
            next: page.next.as_ref().map(ToString::to_string),
            limit: page.limit,
            total: page.total,
            total_pages: page.total_pages(),
            page: number,
        }
    }
}

/// How many members hold a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierCount {
    /// The tier; `None` counts those below every tier.
    pub tier: Option<Tier>,
    /// Its members.
    pub members: u64,
}

/// A community in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
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

impl From<&muster_domain::Stats> for Stats {
    fn from(stats: &muster_domain::Stats) -> Self {
        let tier =
            |count: &muster_domain::TierCount| TierCount { tier: count.tier.clone(), members: count.members };
        Self {
            members: stats.members,
            tiers: stats.tiers.iter().map(tier).collect(),
            conviction_total: stats.conviction_total,
            badges: stats.badges,
            active_this_week: stats.active_this_week,
            new_this_week: stats.new_this_week,
            promotions_this_week: stats.promotions_this_week,
            badges_this_week: stats.badges_this_week,
        }
    }
}

/// A profile and whether lists and ranks count it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisibleProfile {
    /// The profile.
    #[serde(flatten)]
    pub profile: Profile,
    /// Whether lists and ranks count it.
    pub visible: bool,
}

impl From<&muster_domain::Profile> for VisibleProfile {
    fn from(profile: &muster_domain::Profile) -> Self {
        Self { profile: profile.into(), visible: profile.visible }
    }
}

/// A piece of all that is held on a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalData {
    /// The profile.
    pub profile: VisibleProfile,
    /// Badges, revoked ones among them.
    pub badges: Vec<Revocable>,
    /// Changes of tier.
    pub tier_changes: Vec<Change>,
    /// The cursor of the next piece; `None` on the last.
    pub next: Option<String>,
}

impl From<&Export> for PersonalData {
    fn from(export: &Export) -> Self {
        Self {
            profile: (&export.profile).into(),
            badges: export.badges.iter().map(Revocable::from).collect(),
            tier_changes: export.tier_changes.iter().map(Change::from).collect(),
            next: export.next.as_ref().map(ToString::to_string),
        }
    }
}

/// Who was erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// The profile that nothing personal is held on any more.
    pub profile_id: ProfileId,
    /// True.
    pub erased: bool,
}

/// How many rate limits' counters were forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// The number.
    pub cleared: u64,
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
}
