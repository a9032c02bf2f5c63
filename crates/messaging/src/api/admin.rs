//! `admin.*`: what operators do.

use muster_domain::lists::ADMIN_PROFILES_EXPORT;
use muster_domain::{Activity, Awarder, BadgeKind, Cursor, Export, Nym, PageLimit, ProfileId, Reason};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::caller::Caller;
use super::endpoint::{Endpoint, endpoint};
use super::error::ServiceError;
use super::field::{Field, Fields, Value};
use super::page::Rows;
use super::row::{Badge, Profile, utc};
use super::tiers::TierChange;

endpoint! {
    "admin.badges.award" -> AwardedBadge, "the badge and `created`; false when it was held already";

    /// Awards a badge.
    pub struct AwardBadge {
        /// To whom.
        pub profile_id: ProfileId,
        /// What for.
        pub kind: BadgeKind,
        /// Why.
        pub reason: Option<Reason>,
        /// By whom.
        pub awarded_by: Option<Awarder>,
    }

    const IS_REPEATABLE: bool = false;
}

/// The badge that is held after an award.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwardedBadge {
    /// The badge.
    #[serde(flatten)]
    pub badge: Badge,
    /// False when it was held already.
    pub created: bool,
}

impl From<muster_domain::Award> for AwardedBadge {
    fn from(award: muster_domain::Award) -> Self {
        Self { badge: award.badge.into(), created: award.created }
    }
}

endpoint! {
    "admin.badges.revoke" -> RevocableBadge,
    "the badge with `revoked_at`, `revoked_by`, `revoke_reason` (`not_found` where it is not held)";

    /// Revokes a badge.
    pub struct RevokeBadge {
        /// Whose.
        pub profile_id: ProfileId,
        /// Which.
        pub kind: BadgeKind,
        /// Why.
        pub reason: Option<Reason>,
        /// By whom.
        pub revoked_by: Option<Awarder>,
    }

    const IS_REPEATABLE: bool = false;
}

/// One badge and whether it was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocableBadge {
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

impl From<muster_domain::Badge> for RevocableBadge {
    fn from(badge: muster_domain::Badge) -> Self {
        Self {
            revoked_at: badge.revoked_at.map(utc),
            revoked_by: badge.revoked_by.clone(),
            revoke_reason: badge.revoke_reason.clone(),
            badge: badge.into(),
        }
    }
}

endpoint! {
    "admin.profiles.hide" -> VisibleProfile, "the profile, `visible` false";

    /// Takes a profile out of lists and ranks.
    pub struct HideProfile {
        /// Whom.
        pub profile_id: ProfileId,
    }
}

endpoint! {
    "admin.profiles.show" -> VisibleProfile, "the profile, `visible` true unless they have left";

    /// Puts a hidden profile back.
    pub struct ShowProfile {
        /// Whom.
        pub profile_id: ProfileId,
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

impl From<muster_domain::Profile> for VisibleProfile {
    fn from(profile: muster_domain::Profile) -> Self {
        Self { visible: profile.visible, profile: profile.into() }
    }
}

/// All that is held on a person, page by page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportProfile {
    /// On whom.
    pub profile_id: ProfileId,
    /// Where to go on: the `next` of the answer before.
    #[serde(skip_serializing_if = "Value::is_absent")]
    pub cursor: Option<Cursor>,
    /// Clients cannot set it: a page is as large as fits into one message.
    #[serde(skip)]
    rows: Rows<1000>,
}

impl ExportProfile {
    /// Asks for the page that begins at `cursor`, or for the first.
    #[must_use]
    pub fn new(profile_id: ProfileId, cursor: Option<Cursor>) -> Self {
        Self { profile_id, cursor, rows: Rows::default() }
    }

    /// How many rows at most are answered.
    #[must_use]
    pub fn limit(&self) -> PageLimit {
        self.rows.applied()
    }
}

impl Endpoint for ExportProfile {
    const NAME: &'static str = ADMIN_PROFILES_EXPORT;
    const HELP: &'static str = "All that is held on a person, piece by piece.";
    const FIELDS: &'static [Field] = &[
        Field::of::<ProfileId>("profile_id", "On whom."),
        Field::of::<Option<Cursor>>("cursor", "Where to go on."),
    ];
    const ANSWER: &'static str = "`profile` (as `admin.profiles.show` answers it), `username` (the nym where there is no \
                                  nickname), `badges` (as `admin.badges.revoke` does), `operations` (awards and \
                                  revocations that are no badges: `kind`, `award`, `at`, `by`, `reason`), `additions` (to \
                                  the activity, old ones summed: `at`, `amount`), `tier_changes` (as `tiers.changes` does); `next` while \
                                  there is more";

    type Answer = PersonalData;

    fn read(fields: &mut Fields<'_>) -> Result<Self, ServiceError> {
        Ok(Self::new(Value::read(fields, "profile_id")?, Value::read(fields, "cursor")?))
    }

    fn halve(&mut self) -> bool {
        self.rows.halve()
    }

    fn profile(&self) -> Option<ProfileId> {
        Some(self.profile_id)
    }
}

/// A page of all that is held on a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalData {
    /// The profile.
    pub profile: VisibleProfile,
    /// The user name, which the nym is where there is no nickname.
    #[serde(default)]
    pub username: Option<Nym>,
    /// Badges, revoked ones among them.
    pub badges: Vec<RevocableBadge>,
    /// Awards and revocations that are no badges.
    #[serde(default)]
    pub operations: Vec<BadgeOperation>,
    /// What was added to the activity since it was last set. What is older than the ids of its events is summed by month or year.
    #[serde(default)]
    pub additions: Vec<Addition>,
    /// Changes of tier.
    pub tier_changes: Vec<TierChange>,
    /// The cursor of the next page; `None` on the last.
    pub next: Option<Cursor>,
}

/// An award or revocation that is not listed as a badge: one that had no effect, or a revocation, which the badge that it revoked
/// shows too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadgeOperation {
    /// Of which kind.
    pub kind: BadgeKind,
    /// Whether it is an award.
    pub award: bool,
    /// When it was.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who awarded or revoked it.
    pub by: Option<Awarder>,
    /// Why.
    pub reason: Option<Reason>,
}

impl From<muster_domain::BadgeOperation> for BadgeOperation {
    fn from(operation: muster_domain::BadgeOperation) -> Self {
        let muster_domain::BadgeOperation { kind, award, at, by, reason } = operation;
        Self { kind, award, at: utc(at), by, reason }
    }
}

/// An addition to a member's activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition {
    /// When it was; of a sum, when the last of it was.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// How much.
    pub amount: Activity,
}

impl From<muster_domain::Addition> for Addition {
    fn from(addition: muster_domain::Addition) -> Self {
        Self { at: utc(addition.at), amount: addition.amount }
    }
}

impl From<Export> for PersonalData {
    fn from(export: Export) -> Self {
        Self {
            profile: export.profile.into(),
            username: export.username,
            badges: export.badges.into_iter().map(RevocableBadge::from).collect(),
            operations: export.operations.into_iter().map(BadgeOperation::from).collect(),
            additions: export.additions.into_iter().map(Addition::from).collect(),
            tier_changes: export.tier_changes.into_iter().map(TierChange::from).collect(),
            next: export.next,
        }
    }
}

endpoint! {
    "admin.profiles.erase" -> ErasedProfile, "`profile_id`, `erased` true: nothing personal remains, and counts follow; \
        for good, see [Erasure](#erasure)";

    /// Erases a person.
    pub struct EraseProfile {
        /// Whom.
        pub profile_id: ProfileId,
    }

    const IS_REPEATABLE: bool = false;
}

/// Who was erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedProfile {
    /// The profile that nothing personal is held on any more.
    pub profile_id: ProfileId,
    /// True.
    pub erased: bool,
}

endpoint! {
    "admin.ratelimit.clear" -> ClearedCounters, "`cleared`: how many counters";

    /// Forgets rate limits' counters: one caller's, or the whole community's where none is given.
    #[derive(Default)]
    pub struct ClearRateLimit {
        /// Whose; the whole community's where none is given.
        pub caller: Option<Caller>,
    }

    const IS_REPEATABLE: bool = false;
}

/// How many rate limits' counters were forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearedCounters {
    /// The number.
    pub cleared: u64,
}
