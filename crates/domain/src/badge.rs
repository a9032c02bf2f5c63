use time::OffsetDateTime;

use crate::text::{is_deceptive, text_type};
use crate::{BadgeId, ProfileId, TextError};

fn readable(c: char) -> bool {
    !is_deceptive(c)
}

text_type!(
    /// What a badge is for, such as `first_blood`: 1 to 64 characters, none of them a control character.
    BadgeKind, 64, readable
);
text_type!(
    /// Why a badge was awarded or revoked: 1 to 500 characters on one line.
    Reason, 500, readable
);
text_type!(
    /// Who awarded or revoked a badge, as the caller names them: 1 to 64 characters.
    Awarder, 64, readable
);

impl Reason {
    /// Checks a reason that need not be given: a blank one is none.
    ///
    /// # Errors
    /// [`TextError`](crate::TextError) names the bound that was broken.
    pub fn parse_optional(text: impl Into<String>) -> Result<Option<Self>, TextError> {
        unless_blank(text.into(), Self::parse)
    }
}

impl Awarder {
    /// Checks the name of an awarder who need not be named: a blank one is none.
    ///
    /// # Errors
    /// [`TextError`](crate::TextError) names the bound that was broken.
    pub fn parse_optional(text: impl Into<String>) -> Result<Option<Self>, TextError> {
        unless_blank(text.into(), Self::parse)
    }
}

fn unless_blank<T>(
    text: String,
    parse: impl FnOnce(String) -> Result<T, TextError>,
) -> Result<Option<T>, TextError> {
    if text.trim().is_empty() { Ok(None) } else { parse(text).map(Some) }
}

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
