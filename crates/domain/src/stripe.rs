use crate::UserId;
use crate::hash::spread;

/// One of the [`Stripe::COUNT`] parts that a community's members fall into by the person's id.
///
/// Members of one stripe are changed by one transaction at a time, those of different stripes at once: lock striping. Whoever
/// gathers events into batches keeps to a stripe where there is enough of it, so that batches do not wait for each other.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stripe(u8);

impl Stripe {
    /// How many there are. Replicas of different versions must agree on it, and on who belongs where: it never changes.
    pub const COUNT: u8 = 4;

    /// The stripe that a person belongs to: the two high bytes of the FNV-1a hash of their id, folded into one, modulo the
    /// count. The lowest bits of that hash depend on the lowest bits of the id's bytes alone.
    ///
    /// ```
    /// # use muster_domain::{Stripe, UserId};
    /// let user = UserId::parse("100000000000007919")?;
    /// assert_eq!(Stripe::of(&user).number(), 1);
    /// # Ok::<_, muster_domain::TextError>(())
    /// ```
    #[must_use]
    pub fn of(user: &UserId) -> Self {
        Self(spread(user.as_str()) % Self::COUNT)
    }

    /// Every stripe, in order.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        (0..Self::COUNT).map(Self)
    }

    /// Its number, from 0.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_spread_over_all_stripes_and_stay_where_they_are() {
        let user = |n: u64| UserId::parse((100_000_000_000_000_000 + n * 7919).to_string()).unwrap();
        let mut members = vec![0; Stripe::all().count()];
        for n in 0..40_000 {
            members[usize::from(Stripe::of(&user(n)).number())] += 1;
        }
        assert!(members.iter().all(|count| (9_500..10_500).contains(count)), "{members:?}");
        let known: Vec<u8> = (0..8).map(|n| Stripe::of(&user(n)).number()).collect();
        assert_eq!(known, [0, 1, 3, 2, 3, 2, 1, 2], "replicas of another version would disagree");
    }
}
