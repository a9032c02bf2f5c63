use time::OffsetDateTime;

use crate::text::shown_type;
use crate::{BadgeId, ProfileId};

shown_type!(
    /// What a badge is for, such as `first_blood`: 1 to 64 characters, cleaned as a nym is. Case counts. The bytes are few
    /// enough for a cursor to hold a kind.
    BadgeKind, 64, 256
);
shown_type!(
    /// Why a badge was awarded or revoked: 1 to 500 characters on one line, cleaned as a nym is.
    Reason, 500, 6000
);
shown_type!(
    /// Who awarded or revoked a badge, as the caller names them: 1 to 64 characters, cleaned as a nym is.
    Awarder, 64, 768
);

/// One award of one kind to one profile. A revoked badge stays as history; the kind may be awarded again as a new badge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Badge {
    /// The award's id.
    pub badge_id: BadgeId,
    /// Whose it is.
    pub profile_id: ProfileId,
    /// What it is for.
    pub kind: BadgeKind,
    /// When it was awarded.
    pub awarded_at: OffsetDateTime,
    /// Who awarded it.
    pub awarded_by: Option<Awarder>,
    /// Why it was awarded.
    pub reason: Option<Reason>,
    /// When it was revoked; `None` while it is held.
    pub revoked_at: Option<OffsetDateTime>,
    /// Who revoked it.
    pub revoked_by: Option<Awarder>,
    /// Why it was revoked.
    pub revoke_reason: Option<Reason>,
}

/// An award or revocation that is not listed as a badge: one that had no effect, or a revocation, which the badge that it revoked
/// shows too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadgeOperation {
    /// Of which kind.
    pub kind: BadgeKind,
    /// Whether it is an award.
    pub award: bool,
    /// When it was.
    pub at: OffsetDateTime,
    /// Who awarded or revoked it.
    pub by: Option<Awarder>,
    /// Why.
    pub reason: Option<Reason>,
}

/// The answer to an award.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Award {
    /// The badge that is now held.
    pub badge: Badge,
    /// False when it was held already.
    pub created: bool,
}

/// A badge kind of a community.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindCount {
    /// The kind.
    pub kind: BadgeKind,
    /// How many profiles hold it now.
    pub holders: u64,
    /// When it was first awarded.
    pub first_awarded_at: OffsetDateTime,
}
