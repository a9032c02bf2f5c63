use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// How long a member has been there, as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tenure {
    /// The first days: up to 30 by default.
    Og,
    /// After that.
    Member,
    /// From 90 days by default.
    Veteran,
    /// From 180 days by default.
    Elder,
}

impl Tenure {
    /// The word as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Og => "og",
            Self::Member => "member",
            Self::Veteran => "veteran",
            Self::Elder => "elder",
        }
    }
}

/// From how many whole days on each tenure begins. It is kept for each community.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenurePolicy {
    member: u32,
    veteran: u32,
    elder: u32,
}

impl TenurePolicy {
    /// Bounds in whole days, each tenure beginning where the one before it ends. `None` unless they ascend.
    #[must_use]
    pub const fn new(member: u32, veteran: u32, elder: u32) -> Option<Self> {
        if member < veteran && veteran < elder { Some(Self { member, veteran, elder }) } else { None }
    }

    /// The first whole day of `member`, `veteran` and `elder`.
    #[must_use]
    pub const fn days(&self) -> (u32, u32, u32) {
        (self.member, self.veteran, self.elder)
    }

    /// The tenure at `now` of one who joined at `joined`. A date of joining that lies ahead counts as today.
    #[must_use]
    pub fn tenure(&self, joined: OffsetDateTime, now: OffsetDateTime) -> Tenure {
        let days = (now - joined).whole_days();
        match days {
            _ if days >= i64::from(self.elder) => Tenure::Elder,
            _ if days >= i64::from(self.veteran) => Tenure::Veteran,
            _ if days >= i64::from(self.member) => Tenure::Member,
            _ => Tenure::Og,
        }
    }
}

impl Default for TenurePolicy {
    fn default() -> Self {
        Self { member: 31, veteran: 90, elder: 180 }
    }
}

#[cfg(test)]
mod tests {
    use time::{Duration, macros::datetime};

    use super::*;

    #[test]
    fn the_days_on_which_tenure_changes() {
        let joined = datetime!(2026-01-01 00:00 UTC);
        let at = |days| TenurePolicy::default().tenure(joined, joined + Duration::days(days));
        for (days, tenure) in [
            (-1, Tenure::Og),
            (0, Tenure::Og),
            (30, Tenure::Og),
            (31, Tenure::Member),
            (89, Tenure::Member),
            (90, Tenure::Veteran),
            (179, Tenure::Veteran),
            (180, Tenure::Elder),
            (4000, Tenure::Elder),
        ] {
            assert_eq!(at(days), tenure, "day {days}");
        }
        assert_eq!(TenurePolicy::new(90, 90, 180), None);
    }
}
