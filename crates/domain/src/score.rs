use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// The largest whole number that JSON clients can hold exactly: 2^53 − 1 (RFC 8259, section 6).
const JSON_MAX: i64 = (1 << 53) - 1;

/// The score that ranks members: a whole number within ±(2^53 − 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub struct Conviction(i64);

impl Conviction {
    /// The highest score.
    pub const MAX: Self = Self(JSON_MAX);
    /// The lowest score.
    pub const MIN: Self = Self(-JSON_MAX);

    /// The nearest score that is allowed.
    #[must_use]
    pub fn clamp(score: impl Into<i128>) -> Self {
        let score: i128 = score.into();
        match i64::try_from(score) {
            Ok(score) => Self(score.clamp(-JSON_MAX, JSON_MAX)),
            Err(_) if score < 0 => Self::MIN,
            Err(_) => Self::MAX,
        }
    }

    /// The score.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// How far `self` lies above `other`; negative when below. Within ±(2^53 − 1), too: what is further apart is answered as
    /// that far.
    #[must_use]
    pub fn above(self, other: Self) -> i64 {
        Self::clamp(self.0.saturating_sub(other.0)).0
    }
}

impl From<i64> for Conviction {
    fn from(score: i64) -> Self {
        Self::clamp(score)
    }
}

impl From<Conviction> for i64 {
    fn from(score: Conviction) -> Self {
        score.0
    }
}

impl fmt::Display for Conviction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How active a member has been: 0 to 2^53 − 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub struct Activity(i64);

impl Activity {
    /// The highest activity.
    pub const MAX: Self = Self(JSON_MAX);

    /// The nearest activity that is allowed.
    #[must_use]
    pub fn clamp(amount: impl Into<i128>) -> Self {
        Self(i64::try_from(amount.into().clamp(0, i128::from(JSON_MAX))).unwrap_or(JSON_MAX))
    }

    /// The amount.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// Both together, at most [`Activity::MAX`].
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self::clamp(i128::from(self.0).saturating_add(i128::from(other.0)))
    }
}

impl From<i64> for Activity {
    fn from(amount: i64) -> Self {
        Self::clamp(amount)
    }
}

impl From<Activity> for i64 {
    fn from(amount: Activity) -> Self {
        amount.0
    }
}

/// A competition rank (1, 2, 2, 4): one more than the number of visible members who stand higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(NonZeroU64);

impl Rank {
    /// The best rank: 1.
    pub const FIRST: Self = Self(NonZeroU64::MIN);

    /// The rank of whoever has `above` members standing higher.
    #[must_use]
    pub const fn below(above: u64) -> Self {
        Self(NonZeroU64::MIN.saturating_add(above))
    }

    /// The rank, from 1.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::{self, U64Deserializer};

    use super::*;

    #[test]
    fn scores_stay_within_what_json_holds() {
        assert_eq!(Conviction::clamp(i64::MAX), Conviction::MAX);
        assert_eq!(Conviction::clamp(i128::MIN), Conviction::MIN);
        assert_eq!(Conviction::MAX.get(), 9_007_199_254_740_991);
        assert_eq!(Activity::clamp(-1_i64).get(), 0);
        assert_eq!(Activity::MAX.plus(Activity::clamp(1_i64)), Activity::MAX);
        assert_eq!(Conviction::MAX.above(Conviction::MIN), Conviction::MAX.get());
        assert_eq!(Conviction::MIN.above(Conviction::MAX), Conviction::MIN.get());
    }

    #[test]
    fn ranks_begin_with_one() {
        assert_eq!(Rank::below(0), Rank::FIRST);
        let read = |number: u64| Rank::deserialize(U64Deserializer::<value::Error>::new(number));
        assert_eq!(read(3), Ok(Rank::below(2)));
        assert!(read(0).is_err());
    }
}
