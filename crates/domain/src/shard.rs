use crate::GuildId;
use crate::hash::spread;

/// One of the [`Shard::COUNT`] parts that all communities fall into.
///
/// A shard is the unit in which the database can be parted over several nodes: a transaction is of one shard. Whoever gathers events
/// of many communities into batches does better with communities of one shard.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u8);

impl Shard {
    /// How many there are.
    pub const COUNT: u8 = 16;

    /// The shard that a new community belongs to, by its chat server's id. A community that is there stays in the shard that its
    /// row names.
    ///
    /// ```
    /// # use muster_domain::{GuildId, Shard};
    /// let guild = GuildId::parse("810000000000000000")?;
    /// assert!(Shard::of(&guild).number() < Shard::COUNT);
    /// # Ok::<_, muster_domain::TextError>(())
    /// ```
    #[must_use]
    pub fn of(guild: &GuildId) -> Self {
        Self(spread(guild.as_str()) % Self::COUNT)
    }

    /// The shard of this number, if there is one.
    #[must_use]
    pub fn parse(number: i16) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| *number < Self::COUNT).map(Self)
    }

    /// Every shard, in order.
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
    fn communities_spread_over_all_shards() {
        let guild = |n: u64| GuildId::parse((810_000_000_000_000_000 + n * 7919).to_string()).unwrap();
        let mut communities = vec![0; Shard::all().count()];
        for n in 0..16_000 {
            communities[usize::from(Shard::of(&guild(n)).number())] += 1;
        }
        assert!(communities.iter().all(|count| (800..1_200).contains(count)), "{communities:?}");
        assert_eq!(Shard::parse(16), None);
        assert_eq!(Shard::parse(-1), None);
    }
}
