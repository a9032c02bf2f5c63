//! Owners that wait for a lane, in turn: shard by shard, and in a shard owner by owner.
//!
//! A lane takes owners of one shard at a time, because what it takes is applied in a transaction of one shard: a thousand communities with
//! an event each come to a few transactions.

use std::collections::VecDeque;

use muster_domain::{GuildId, Shard};

/// Whose queue it is. Messages that name no readable community share one.
pub(super) type Owner = Option<GuildId>;

/// The owners that are ready.
pub(super) struct ReadyOwners {
    /// By the shard's number, the next first.
    shards: Vec<VecDeque<Owner>>,
    /// Shards with owners, the next first.
    turns: VecDeque<Shard>,
}

/// The shard of an owner's events. What names no readable community is applied nowhere.
fn shard_of(owner: &Owner) -> Shard {
    owner.as_ref().map(Shard::of).unwrap_or_default()
}

impl ReadyOwners {
    pub(super) fn new() -> Self {
        Self { shards: Shard::all().map(|_| VecDeque::new()).collect(), turns: VecDeque::new() }
    }

    /// Adds an owner behind the others of its shard.
    pub(super) fn push_back(&mut self, owner: Owner) {
        let shard = shard_of(&owner);
        let Some(owners) = self.owners(shard) else { return };
        owners.push_back(owner);
        if !self.turns.contains(&shard) {
            self.turns.push_back(shard);
        }
    }

    /// Puts an owner back as the next of the next shard.
    pub(super) fn push_front(&mut self, owner: Owner) {
        let shard = shard_of(&owner);
        let Some(owners) = self.owners(shard) else { return };
        owners.push_front(owner);
        self.turns.retain(|turn| *turn != shard);
        self.turns.push_front(shard);
    }

    /// Takes the next owner of this shard, or of the shard whose turn it is.
    pub(super) fn pop(&mut self, shard: Option<Shard>) -> Option<(Shard, Owner)> {
        let shard = shard.or_else(|| self.turns.front().copied())?;
        let owners = self.owners(shard)?;
        let owner = owners.pop_front()?;
        if owners.is_empty() {
            self.turns.retain(|turn| *turn != shard);
        }
        Some((shard, owner))
    }

    /// Ends the turn of a shard: the others come first.
    pub(super) fn end_turn(&mut self, shard: Shard) {
        if let Some(place) = self.turns.iter().position(|turn| *turn == shard) {
            self.turns.remove(place);
            self.turns.push_back(shard);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    fn owners(&mut self, shard: Shard) -> Option<&mut VecDeque<Owner>> {
        self.shards.get_mut(usize::from(shard.number()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first owners of a shard.
    fn owners(shard: Shard) -> Vec<Owner> {
        let guilds = (0..).map(|number: u32| GuildId::parse(number.to_string()).unwrap());
        guilds.filter(|guild| Shard::of(guild) == shard).take(3).map(Some).collect()
    }

    #[test]
    fn shards_take_turns_and_so_do_their_owners() {
        let [one, two, ..] = Shard::all().collect::<Vec<_>>()[..] else { panic!("there are more shards") };
        let mut ready = ReadyOwners::new();
        for owner in owners(one).into_iter().chain(owners(two)) {
            ready.push_back(owner);
        }
        assert_eq!(ready.pop(None), Some((one, owners(one)[0].clone())));
        assert_eq!(ready.pop(Some(one)), Some((one, owners(one)[1].clone())));
        ready.end_turn(one);
        ready.push_back(owners(one)[0].clone());
        assert_eq!(ready.pop(None), Some((two, owners(two)[0].clone())));
        ready.push_front(owners(two)[0].clone());
        for owner in owners(two) {
            assert_eq!(ready.pop(Some(two)), Some((two, owner)));
        }
        assert_eq!(ready.pop(Some(two)), None);
        assert_eq!(ready.pop(None), Some((one, owners(one)[2].clone())));
        assert_eq!(ready.pop(None), Some((one, owners(one)[0].clone())));
        assert_eq!(ready.pop(None), None);
    }
}
