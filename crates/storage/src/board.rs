//! The boards of a community: what ranks its members.

/// What ranks members. Everything that is kept of a board is kept by its number: another board is another variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Board {
    /// Every visible member, by conviction.
    Conviction,
    /// Visible members with an activity above zero.
    Activity,
    /// Every visible member, by unrevoked badges.
    Badges,
}

impl Board {
    /// Every one, in the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Conviction, Self::Activity, Self::Badges];

    /// The number in the tables.
    pub(crate) const fn number(self) -> i16 {
        match self {
            Self::Conviction => 1,
            Self::Activity => 2,
            Self::Badges => 3,
        }
    }
}

/// The topmost level of a board's tree of counts.
pub(crate) const TOP_LEVEL: i16 = 10;

/// How many bits of the score a level shares less than the one below.
const BITS: u32 = 5;

/// The bucket of a score on a level.
pub(crate) fn bucket(score: i64, level: i16) -> i64 {
    score >> (BITS * u32::from(level.unsigned_abs()))
}
