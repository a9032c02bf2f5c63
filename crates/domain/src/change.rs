use time::OffsetDateTime;

use crate::text::{text_type, visible_ascii};
use crate::{BadgeId, BadgeKind, ChangeId, CommunityId, GuildId, Nym, ProfileId, Reason, Tier, UserId};

text_type!(
    /// The trace that something belongs to, as W3C Trace Context has it: 1 to 128 visible ASCII characters, of which version 00
    /// has 55.
    TraceParent, 128, visible_ascii
);

/// Something of a community that changed, as it is published to siblings.
///
/// A community's changes are numbered by one, without a gap, in the order in which they were committed. A follower that sees a
/// number that is not one more than its last has missed or repeated a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its id, by which a repetition is known.
    pub id: ChangeId,
    /// Its number in the community, from 1.
    pub number: u64,
    /// When it was made.
    pub at: OffsetDateTime,
    /// In which community.
    pub community: CommunityId,
    /// That community's chat server.
    pub guild: Option<GuildId>,
    /// What changed.
    pub what: Changed,
    /// The trace of what caused it.
    pub traceparent: Option<TraceParent>,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Something of one member.
    Member {
        /// The member's profile.
        profile: ProfileId,
        /// The person's id on the chat platform. Of an erased person it is published once more, and never after that.
        user: UserId,
        /// What it is now.
        data: ChangeData,
    },
    /// Too many changes waited: the `count` before this one were dropped, and are the gap in the numbers. Whoever follows reads the
    /// lists anew.
    Lost {
        /// How many were dropped.
        count: u64,
    },
}

/// What is new of a visible member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeData {
    /// A higher tier.
    TierPromoted {
        /// The tier before, if there was one.
        from: Option<Tier>,
        /// The tier now, if there is one.
        to: Option<Tier>,
    },
    /// A lower tier.
    TierDemoted {
        /// The tier before, if there was one.
        from: Option<Tier>,
        /// The tier now, if there is one.
        to: Option<Tier>,
    },
    /// A badge is held.
    BadgeAwarded(ChangedBadge),
    /// A badge is no longer held.
    BadgeRevoked(ChangedBadge),
    /// The member became visible. The badges held are published after this.
    Appeared {
        /// The tier, if there is one.
        tier: Option<Tier>,
    },
    /// The member is visible no more.
    Disappeared(Disappearance),
    /// The display name is another.
    Renamed {
        /// The name before.
        from: Nym,
        /// The name now.
        to: Nym,
    },
}

/// A badge that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedBadge {
    /// The badge.
    pub badge_id: BadgeId,
    /// Its kind.
    pub kind: BadgeKind,
    /// Why it was awarded, or revoked.
    pub reason: Option<Reason>,
}

/// Why a member is visible no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disappearance {
    /// They left the chat server.
    Left,
    /// An operator hid them.
    Hidden,
    /// They were erased: whoever keeps a copy drops it.
    Erased,
}

impl Disappearance {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Left, Self::Hidden, Self::Erased];

    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Hidden => "hidden",
            Self::Erased => "erased",
        }
    }

    /// The reason of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.as_str() == name)
    }
}

/// The kinds of changes, named as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeType {
    /// [`ChangeData::Disappeared`]
    MemberDisappeared,
    /// [`ChangeData::Appeared`]
    MemberAppeared,
    /// [`ChangeData::Renamed`]
    MemberRenamed,
    /// [`ChangeData::TierPromoted`]
    TierPromoted,
    /// [`ChangeData::TierDemoted`]
    TierDemoted,
    /// [`ChangeData::BadgeRevoked`]
    BadgeRevoked,
    /// [`ChangeData::BadgeAwarded`]
    BadgeAwarded,
    /// [`Changed::Lost`]
    Lost,
}

impl ChangeType {
    /// Every type, in the order in which the changes of a member that come from one cause are published.
    pub const ALL: [Self; 8] = [
        Self::MemberDisappeared,
        Self::MemberAppeared,
        Self::MemberRenamed,
        Self::TierPromoted,
        Self::TierDemoted,
        Self::BadgeRevoked,
        Self::BadgeAwarded,
        Self::Lost,
    ];

    /// Its name on the wire: the end of the subject, behind the community.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MemberDisappeared => "member.disappeared",
            Self::MemberAppeared => "member.appeared",
            Self::MemberRenamed => "member.renamed",
            Self::TierPromoted => "tier.promoted",
            Self::TierDemoted => "tier.demoted",
            Self::BadgeRevoked => "badge.revoked",
            Self::BadgeAwarded => "badge.awarded",
            Self::Lost => "changes.lost",
        }
    }

    /// The type of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|change_type| change_type.as_str() == name)
    }

    /// Its meaning, for documentation.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::MemberDisappeared => {
                "a member is no longer visible; an erasure is published, once, by whoever publishes anything"
            }
            Self::MemberAppeared => "a member became visible; the badges held follow as `badge.awarded`",
            Self::MemberRenamed => "a visible member's nym changed",
            Self::TierPromoted => "a visible member holds a higher tier",
            Self::TierDemoted => "a visible member holds a lower tier",
            Self::BadgeRevoked => "a visible member's badge is no longer held",
            Self::BadgeAwarded => "a visible member's badge is held",
            Self::Lost => {
                "more than 100,000 changes of the community waited, and were dropped: read the lists anew, then follow on"
            }
        }
    }
}

impl Change {
    /// Its type.
    #[must_use]
    pub const fn change_type(&self) -> ChangeType {
        match &self.what {
            Changed::Lost { .. } => ChangeType::Lost,
            Changed::Member { data, .. } => match data {
                ChangeData::TierPromoted { .. } => ChangeType::TierPromoted,
                ChangeData::TierDemoted { .. } => ChangeType::TierDemoted,
                ChangeData::BadgeAwarded(_) => ChangeType::BadgeAwarded,
                ChangeData::BadgeRevoked(_) => ChangeType::BadgeRevoked,
                ChangeData::Appeared { .. } => ChangeType::MemberAppeared,
                ChangeData::Disappeared(_) => ChangeType::MemberDisappeared,
                ChangeData::Renamed { .. } => ChangeType::MemberRenamed,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_and_reason_is_found_by_its_name() {
        for change_type in ChangeType::ALL {
            assert_eq!(ChangeType::of(change_type.as_str()), Some(change_type));
        }
        for why in Disappearance::ALL {
            assert_eq!(Disappearance::of(why.as_str()), Some(why));
        }
        assert_eq!(ChangeType::of("tier"), None);
    }
}
