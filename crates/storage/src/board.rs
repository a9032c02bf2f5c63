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

/// Whether the members of a bucket are counted. A rank sums the siblings to the right of each bucket that its score falls into, which the
/// leftmost of siblings never is; so it is counted at the bottom alone, where ties are read, and at the top, where all are siblings.
/// Scores as communities have them fall into the leftmost buckets of most levels.
pub(crate) const fn is_counted(bucket: i64, level: i16) -> bool {
    level == 0 || level == TOP_LEVEL || bucket & ((1 << BITS) - 1) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of these scores are above one, as a rank is read.
    fn above(scores: &[i64], score: i64) -> usize {
        let counted = |level: i16| {
            let own = bucket(score, level);
            let last = if level == TOP_LEVEL { 7 } else { own | 31 };
            let buckets = scores.iter().map(move |score| bucket(*score, level));
            buckets.filter(move |of| is_counted(*of, level) && *of > own && *of <= last).count()
        };
        (0..=TOP_LEVEL).map(counted).sum()
    }

    #[test]
    fn a_rank_is_read_from_the_counted_buckets_alone() {
        let most = (1_i64 << 53) - 1;
        let near = [-1025, -1024, -33, -32, -31, -1, 0, 1, 31, 32, 33, 1023, 1024, 1 << 20, 1 << 50];
        let scores: Vec<i64> = near.into_iter().chain([-most, most, most - 31, -most + 32, 77_777]).collect();
        for score in &scores {
            let expected = scores.iter().filter(|other| *other > score).count();
            assert_eq!(above(&scores, *score), expected, "above {score}");
        }
        let levels = |score| (0..=TOP_LEVEL).filter(move |level| is_counted(bucket(score, *level), *level));
        assert_eq!(levels(7).collect::<Vec<_>>(), [0, TOP_LEVEL]);
        assert_eq!(levels(700).collect::<Vec<_>>(), [0, 1, TOP_LEVEL]);
    }
}
