use time::OffsetDateTime;

use crate::text::text_type;
use crate::{Activity, Awarder, BadgeKind, CommunityName, Conviction, EventId, GuildId, Nym, Reason, UserId};

fn visible_ascii(c: char) -> bool {
    c.is_ascii_graphic()
}

text_type!(
    /// A role's id on the chat platform: 1 to 64 visible ASCII characters.
    Role, 64, visible_ascii
);

/// When an event happened, in milliseconds since 1970, from then to the end of the year 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventTime(i64);

impl EventTime {
    /// The last millisecond that has a date of four-digit year.
    pub const MAX: i64 = 253_402_300_799_999;

    /// Checks a time in milliseconds; `None` outside the range.
    #[must_use]
    pub fn from_millis(millis: i64) -> Option<Self> {
        (0..=Self::MAX).contains(&millis).then_some(Self(millis))
    }

    /// The time that `date` falls on, held within the range.
    #[must_use]
    pub fn at(date: OffsetDateTime) -> Self {
        let millis = i64::try_from(date.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        Self(millis.clamp(0, Self::MAX))
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// The same as a date.
    #[must_use]
    pub fn date(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// Something that happened on a chat server. Events are ordered by time, then by id: whatever order they arrive in, the
/// end state is that of applying each once in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its id.
    pub id: EventId,
    /// When it happened.
    pub at: EventTime,
    /// Where it happened.
    pub guild: GuildId,
    /// What it changes.
    pub effect: Effect,
}

/// What kind of change an event is, named as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventType {
    /// A community is there.
    GuildJoin,
    /// A community is named anew.
    GuildUpdate,
    /// A community is no longer active.
    GuildLeave,
    /// A member is there.
    MemberJoin,
    /// A member's nickname or roles are others.
    MemberUpdate,
    /// A member is gone.
    MemberLeave,
    /// A member's scores are set.
    ScoreSet,
    /// A member was active.
    ActivityAdd,
    /// A member gets a badge.
    BadgeAward,
    /// A member loses a badge.
    BadgeRevoke,
}

impl EventType {
    /// Each of them.
    pub const ALL: [Self; 10] = [
        Self::GuildJoin,
        Self::GuildUpdate,
        Self::GuildLeave,
        Self::MemberJoin,
        Self::MemberUpdate,
        Self::MemberLeave,
        Self::ScoreSet,
        Self::ActivityAdd,
        Self::BadgeAward,
        Self::BadgeRevoke,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GuildJoin => "guild.join",
            Self::GuildUpdate => "guild.update",
            Self::GuildLeave => "guild.leave",
            Self::MemberJoin => "member.join",
            Self::MemberUpdate => "member.update",
            Self::MemberLeave => "member.leave",
            Self::ScoreSet => "score.set",
            Self::ActivityAdd => "activity.add",
            Self::BadgeAward => "badge.award",
            Self::BadgeRevoke => "badge.revoke",
        }
    }

    /// The type of this name, if there is one.
    ///
    /// ```
    /// use muster_domain::EventType;
    ///
    /// assert_eq!(EventType::of("score.set"), Some(EventType::ScoreSet));
    /// assert_eq!(EventType::of("score.reset"), None);
    /// ```
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event_type| event_type.as_str() == name)
    }
}

/// What an event changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The community itself.
    Guild(GuildEffect),
    /// One of its members.
    Member {
        /// Who.
        user: UserId,
        /// What.
        effect: MemberEffect,
    },
}

impl Effect {
    /// What kind of change it is.
    #[must_use]
    pub const fn event_type(&self) -> EventType {
        match self {
            Self::Guild(GuildEffect::Join { .. }) => EventType::GuildJoin,
            Self::Guild(GuildEffect::Update { .. }) => EventType::GuildUpdate,
            Self::Guild(GuildEffect::Leave) => EventType::GuildLeave,
            Self::Member { effect, .. } => match effect {
                MemberEffect::Join { .. } => EventType::MemberJoin,
                MemberEffect::Update { .. } => EventType::MemberUpdate,
                MemberEffect::Leave => EventType::MemberLeave,
                MemberEffect::ScoreSet { .. } => EventType::ScoreSet,
                MemberEffect::ActivityAdd { .. } => EventType::ActivityAdd,
                MemberEffect::BadgeAward { .. } => EventType::BadgeAward,
                MemberEffect::BadgeRevoke { .. } => EventType::BadgeRevoke,
            },
        }
    }
}

/// A change to a community.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuildEffect {
    /// It exists and is active.
    Join {
        /// Its name.
        name: CommunityName,
    },
    /// It was renamed.
    Update {
        /// Its name.
        name: CommunityName,
    },
    /// It is no longer active.
    Leave,
}

/// A change to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEffect {
    /// They are there.
    Join {
        /// Their user name.
        username: Nym,
    },
    /// Their nickname and roles are these.
    Update {
        /// The nickname; `None` falls back to the user name.
        nick: Option<Nym>,
        /// At most [`MemberEffect::MAX_ROLES`] role ids.
        roles: Vec<Role>,
    },
    /// They have left.
    Leave,
    /// Their scores are these; an absent one stays.
    ScoreSet {
        /// The score that ranks them.
        conviction: Option<Conviction>,
        /// Their activity.
        activity: Option<Activity>,
    },
    /// Their activity grows.
    ActivityAdd {
        /// By this much.
        amount: Activity,
    },
    /// They are awarded a badge.
    BadgeAward {
        /// What for.
        kind: BadgeKind,
        /// Why.
        reason: Option<Reason>,
        /// By whom.
        by: Option<Awarder>,
    },
    /// A badge of theirs is revoked.
    BadgeRevoke {
        /// Which.
        kind: BadgeKind,
        /// Why.
        reason: Option<Reason>,
        /// By whom.
        by: Option<Awarder>,
    },
}

impl MemberEffect {
    /// The most roles a member can have: what the chat platform allows in a server.
    pub const MAX_ROLES: usize = 250;
}
