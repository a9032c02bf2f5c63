use std::time::Duration;

use time::OffsetDateTime;

use crate::{
    Activity, Awarder, BadgeKind, CommunityName, Conviction, EventId, GuildId, Nym, Reason, TraceParent,
    UserId,
};

/// How far an event's time may be ahead of the clock of whoever reads it: 1 second to 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaxClockSkew(Duration);

impl MaxClockSkew {
    /// 1 second.
    pub const MIN: Self = Self(Duration::from_secs(1));
    /// 24 hours.
    pub const MAX: Self = Self(Duration::from_hours(24));

    /// Checks a duration; `None` outside the range.
    #[must_use]
    pub fn new(skew: Duration) -> Option<Self> {
        (Self::MIN.0..=Self::MAX.0).contains(&skew).then_some(Self(skew))
    }

    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Default for MaxClockSkew {
    /// 10 minutes.
    fn default() -> Self {
        Self(Duration::from_mins(10))
    }
}

/// Between which times an event can have happened, as seen at one moment: from 2015, when the chat platform began, to the
/// moment and the clock skew that is allowed for.
///
/// Later events win over earlier ones, so one time too far ahead would freeze what it sets until that time has come. A time
/// before the platform is one in a wrong unit, such as seconds, or of a clock that was never set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeBounds {
    latest: i64,
    skew: MaxClockSkew,
}

impl TimeBounds {
    /// 2015-01-01T00:00:00Z, in milliseconds since 1970.
    pub const EARLIEST: i64 = 1_420_070_400_000;

    /// The bounds at the moment `now`.
    #[must_use]
    pub fn at(now: OffsetDateTime, skew: MaxClockSkew) -> Self {
        let latest = now.saturating_add(time::Duration::try_from(skew.0).unwrap_or(time::Duration::DAY));
        Self { latest: i64::try_from(latest.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX), skew }
    }

    /// The bounds of an event that the broker stored at `stored` by its clock: an event that has been stored has happened, so that this
    /// counts where the clock here, by which it is `now`, is behind.
    #[must_use]
    pub fn of_stored(stored: OffsetDateTime, now: OffsetDateTime, skew: MaxClockSkew) -> Self {
        Self::at(now.max(stored), skew)
    }
}

/// When an event happened, in whole milliseconds. It was within [`TimeBounds`] when it was read.
///
/// ```
/// use muster_domain::{EventTime, EventTimeError, MaxClockSkew, TimeBounds};
/// use time::macros::datetime;
///
/// let bounds = TimeBounds::at(datetime!(2026-11-25 12:00 UTC), MaxClockSkew::default());
/// let time = EventTime::parse(1_700_000_000_000_i64, bounds)?;
/// assert_eq!(time.date(), datetime!(2023-11-14 22:13:20 UTC));
/// assert!(EventTime::parse(1_700_000_000_i64, bounds).is_err(), "seconds");
/// assert!(EventTime::parse(253_402_300_799_999_i64, bounds).is_err(), "the year 9999");
/// # Ok::<(), EventTimeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventTime(i64);

impl EventTime {
    /// Checks a time in milliseconds since 1970.
    ///
    /// # Errors
    /// [`EventTimeError`] names the time and the bound that it breaks.
    pub fn parse(millis: impl Into<i128>, bounds: TimeBounds) -> Result<Self, EventTimeError> {
        let millis = millis.into();
        if millis < i128::from(TimeBounds::EARLIEST) {
            return Err(EventTimeError::TooEarly { millis });
        }
        match i64::try_from(millis) {
            Ok(millis) if millis <= bounds.latest => Ok(Self(millis)),
            _ => Err(EventTimeError::Ahead { millis, latest: bounds.latest, skew: bounds.skew }),
        }
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// The same as a date.
    #[must_use]
    pub fn date(self) -> OffsetDateTime {
        date(self.0.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// Why an event cannot have happened at its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventTimeError {
    /// Before the chat platform.
    #[error(
        "is {}, before {}: give milliseconds since 1970", shown(*millis), shown(TimeBounds::EARLIEST.into())
    )]
    TooEarly {
        /// The time, in milliseconds since 1970.
        millis: i128,
    },
    /// Further ahead of the clock than is allowed for.
    #[error(
        "is {}, more than {} ms ahead of the clock, which allows up to {}",
        shown(*millis), skew.get().as_millis(), shown((*latest).into())
    )]
    Ahead {
        /// The time, in milliseconds since 1970.
        millis: i128,
        /// The latest that was allowed, in milliseconds since 1970.
        latest: i64,
        /// How far ahead is allowed.
        skew: MaxClockSkew,
    },
}

/// The number, and the date that it stands for if that has four digits of a year.
fn shown(millis: i128) -> String {
    match date(millis).filter(|date| (0..=9999).contains(&date.year())) {
        Some(date) => {
            format!(
                "{millis} ({}T{:02}:{:02}:{:02}Z)",
                date.date(),
                date.hour(),
                date.minute(),
                date.second()
            )
        }
        None => millis.to_string(),
    }
}

fn date(millis: i128) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(millis.checked_mul(1_000_000)?).ok()
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
    /// The trace that it belongs to.
    pub traceparent: Option<TraceParent>,
}

impl Event {
    /// The most events that are applied together.
    pub const MAX_BATCH: u16 = 2000;
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
    /// A member's nickname changed.
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
        /// Its name; `None` where that is blank.
        name: Option<CommunityName>,
    },
    /// It was renamed.
    Update {
        /// Its name; `None` where that is blank.
        name: Option<CommunityName>,
    },
    /// It is no longer active.
    Leave,
}

/// A change to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberEffect {
    /// They are there.
    Join {
        /// Their user name; `None`, where that is blank, falls back to the person's id.
        username: Option<Nym>,
    },
    /// Their nickname is this.
    Update {
        /// The nickname; `None` falls back to the user name.
        nick: Option<Nym>,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-25 12:00 UTC);

    fn bounds() -> TimeBounds {
        TimeBounds::at(NOW, MaxClockSkew::default())
    }

    #[test]
    fn a_time_is_refused_with_itself_and_its_bound() {
        let latest = datetime!(2026-11-25 12:10 UTC);
        let millis = i64::try_from(latest.unix_timestamp_nanos() / 1_000_000).unwrap();
        assert_eq!(EventTime::parse(millis, bounds()).unwrap().date(), latest);
        assert_eq!(
            EventTime::parse(millis + 1, bounds()).unwrap_err().to_string(),
            "is 1795608600001 (2026-11-25T12:10:00Z), more than 600000 ms ahead of the clock, which allows up to \
             1795608600000 (2026-11-25T12:10:00Z)"
        );
        let first = EventTime::parse(TimeBounds::EARLIEST, bounds()).unwrap();
        assert_eq!(first.date(), datetime!(2015-01-01 0:00 UTC));
        assert_eq!(
            EventTime::parse(1_700_000_000, bounds()).unwrap_err().to_string(),
            "is 1700000000 (1970-01-20T16:13:20Z), before 1420070400000 (2015-01-01T00:00:00Z): give milliseconds \
             since 1970"
        );
        let huge = EventTime::parse(i128::MAX, bounds()).unwrap_err().to_string();
        assert!(huge.starts_with(&format!("is {}, more than", i128::MAX)), "{huge}");
    }

    #[test]
    fn an_event_that_has_been_stored_is_not_ahead_of_the_clock_that_stored_it() {
        let skew = MaxClockSkew::default();
        let slow = NOW - time::Duration::hours(2);
        for (stored, now) in [(NOW, slow), (slow, NOW), (NOW, NOW)] {
            assert_eq!(TimeBounds::of_stored(stored, now, skew), bounds(), "{stored} {now}");
        }
    }

    #[test]
    fn the_clock_may_show_any_date() {
        for now in [OffsetDateTime::UNIX_EPOCH, datetime!(9999-12-31 23:59:59.9 UTC)] {
            let bounds = TimeBounds::at(now, MaxClockSkew::MAX);
            assert!(EventTime::parse(i64::MAX, bounds).is_err());
            assert!(EventTime::parse(i64::MIN, bounds).is_err());
        }
        for (seconds, is_one) in [(0, false), (1, true), (86_400, true), (86_401, false)] {
            assert_eq!(MaxClockSkew::new(Duration::from_secs(seconds)).is_some(), is_one, "{seconds}");
        }
    }

    proptest! {
        #[test]
        fn no_time_is_beyond_the_bounds(
            millis in prop_oneof![any::<i64>(), 1_420_070_300_000..1_420_070_500_000_i64, 1_795_608_500_000..1_795_608_700_000_i64]
        ) {
            let is_within = (1_420_070_400_000..=1_795_608_600_000).contains(&millis);
            prop_assert_eq!(EventTime::parse(millis, bounds()).map(EventTime::millis).ok(), is_within.then_some(millis));
        }
    }
}
