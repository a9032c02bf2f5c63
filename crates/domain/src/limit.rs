use std::fmt;
use std::num::NonZeroU32;

use serde::Serialize;

/// The size of a page: at least 1 and at most `MAX`, whatever was asked for.
///
/// The field is private and every constructor holds the bound, so a `Limit<1000>` in hand is proof that no more than
/// 1000 rows will be read. There is deliberately no unlimited value, no arithmetic and no `Default`.
///
/// ```
/// use muster_domain::{Limit, PageLimit};
///
/// assert_eq!(PageLimit::clamp(5_000_000).get(), 1000);
/// assert_eq!(PageLimit::clamp(-3).get(), 1);
/// assert!(PageLimit::try_from(1001_u32).is_err());
/// ```
///
/// A bound of nothing does not compile:
///
/// ```compile_fail
/// let none = muster_domain::Limit::<0>::clamp(1_i64);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Limit<const MAX: u32>(NonZeroU32);

/// The size of a page of a list: 1 to 1000.
pub type PageLimit = Limit<1000>;

/// The size of a list of suggestions, such as a search's: 1 to 100.
pub type SearchLimit = Limit<100>;

impl<const MAX: u32> Limit<MAX> {
    const CAP: NonZeroU32 = match NonZeroU32::new(MAX) {
        Some(cap) => cap,
        None => {
            assert!(MAX > 0, "a Limit's MAX must be above zero");
            NonZeroU32::MIN
        }
    };

    /// The largest page: `MAX`.
    pub const MAX: Self = Self(Self::CAP);

    /// The nearest size that is allowed: 1 for anything below, `MAX` for anything above.
    #[must_use]
    pub fn clamp(asked: impl Into<i128>) -> Self {
        let asked: i128 = asked.into();
        if asked >= i128::from(MAX) {
            return Self::MAX;
        }
        match u32::try_from(asked).ok().and_then(NonZeroU32::new) {
            Some(size) => Self(size),
            None => Self(NonZeroU32::MIN),
        }
    }

    /// The size, 1 to `MAX`.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl<const MAX: u32> TryFrom<u32> for Limit<MAX> {
    type Error = LimitError;

    fn try_from(asked: u32) -> Result<Self, LimitError> {
        match NonZeroU32::new(asked) {
            Some(size) if size <= Self::CAP => Ok(Self(size)),
            _ => Err(LimitError { asked: i128::from(asked), cap: MAX }),
        }
    }
}

impl<const MAX: u32> TryFrom<i64> for Limit<MAX> {
    type Error = LimitError;

    fn try_from(asked: i64) -> Result<Self, LimitError> {
        let refused = LimitError { asked: i128::from(asked), cap: MAX };
        u32::try_from(asked).map_err(|_| refused).and_then(Self::try_from).map_err(|_| refused)
    }
}

impl<const MAX: u32> From<Limit<MAX>> for u32 {
    fn from(limit: Limit<MAX>) -> Self {
        limit.get()
    }
}

impl<const MAX: u32> From<Limit<MAX>> for i64 {
    fn from(limit: Limit<MAX>) -> Self {
        Self::from(limit.get())
    }
}

impl<const MAX: u32> fmt::Debug for Limit<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Limit<{MAX}>({})", self.0)
    }
}

impl<const MAX: u32> fmt::Display for Limit<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page size outside its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a limit of {asked} is outside 1 to {cap}: ask for at most {cap} and follow the cursor")]
pub struct LimitError {
    asked: i128,
    cap: u32,
}

impl LimitError {
    /// The largest size that would have been accepted.
    #[must_use]
    pub const fn cap(&self) -> u32 {
        self.cap
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn clamp_never_leaves_the_bounds(asked: i128) {
            let limit = PageLimit::clamp(asked);
            prop_assert!((1..=1000).contains(&limit.get()));
            if (1..=1000).contains(&asked) {
                prop_assert_eq!(i128::from(limit.get()), asked);
            }
        }

        #[test]
        fn try_from_agrees_with_clamp_or_names_the_cap(asked: i64) {
            match SearchLimit::try_from(asked) {
                Ok(limit) => prop_assert_eq!(i64::from(limit), asked),
                Err(error) => {
                    prop_assert!(!(1..=100).contains(&asked));
                    prop_assert!(error.to_string().contains("100"));
                    prop_assert_eq!(error.cap(), 100);
                }
            }
        }

        #[test]
        fn clamp_is_monotonic(a: i64, b: i64) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(PageLimit::clamp(low) <= PageLimit::clamp(high));
        }
    }

    #[test]
    fn the_edges() {
        for (asked, applied) in
            [(i64::MIN, 1), (0, 1), (1, 1), (999, 999), (1000, 1000), (1001, 1000), (i64::MAX, 1000)]
        {
            assert_eq!(PageLimit::clamp(asked).get(), applied, "{asked}");
        }
        assert_eq!(Limit::<1>::MAX.get(), 1);
        assert_eq!(Limit::<{ u32::MAX }>::clamp(i128::MAX).get(), u32::MAX);
    }
}
