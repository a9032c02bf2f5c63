//! Admission control: slots for requests, shared among those who ask, so that one community's load does not delay another's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_domain::CommunityId;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::api::Description;
use crate::request;

/// Whose requests share a part of the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Asker {
    /// Those who run the service: not kept out by a community that asks too much, nor by who looks for one.
    Operators,
    /// Whoever asks of this community.
    Community(CommunityId),
    /// Whoever names no community.
    Nobody,
}

impl Asker {
    pub(crate) fn of(endpoint: &Description, subject: &str) -> Self {
        match request::community(subject) {
            _ if endpoint.is_admin() => Self::Operators,
            Some(community) => Self::Community(community),
            None => Self::Nobody,
        }
    }
}

/// The slots. An asker may have seven eighths of those that the others leave. A slot admits a request, and a permit lets it run: of an
/// asker's requests only so many run at once, and of all together.
#[derive(Debug)]
pub(crate) struct Shares {
    slots: usize,
    at_once: usize,
    permits: Semaphore,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    /// Those that hold a slot, and no others: as many as there are slots at most.
    askers: HashMap<Asker, Share>,
}

#[derive(Debug)]
struct Share {
    slots: usize,
    permits: Arc<Semaphore>,
}

/// One slot, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    shares: Arc<Shares>,
    asker: Asker,
    permits: Arc<Semaphore>,
}

/// Lets a request run until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    _of_asker: Option<SemaphorePermit<'a>>,
    _of_all: Option<SemaphorePermit<'a>>,
}

impl Shares {
    /// So many slots, and permits for so many requests of one asker and of all.
    pub(crate) fn new(slots: usize, at_once: usize, at_once_in_all: usize) -> Arc<Self> {
        let permits = Semaphore::new(at_once_in_all.clamp(1, Semaphore::MAX_PERMITS));
        Arc::new(Self { slots, at_once: at_once.max(1), permits, held: Mutex::default() })
    }

    /// A slot for a request of this asker; `None` when it has its share, or all are taken.
    pub(crate) fn take(self: &Arc<Self>, asker: Asker) -> Option<Slot> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let has = held.askers.get(&asker).map_or(0, |it| it.slots);
        let left_by_others = self.slots.saturating_sub(held.total.saturating_sub(has));
        let share = left_by_others.saturating_sub(left_by_others.div_ceil(8)).max(1);
        if held.total >= self.slots || has >= share {
            return None;
        }
        held.total = held.total.saturating_add(1);
        let entry = held
            .askers
            .entry(asker)
            .or_insert_with(|| Share { slots: 0, permits: Arc::new(Semaphore::new(self.at_once)) });
        entry.slots = entry.slots.saturating_add(1);
        let permits = Arc::clone(&entry.permits);
        Some(Slot { shares: Arc::clone(self), asker, permits })
    }
}

impl Slot {
    /// Waits for a permit. An asker's requests get theirs in the order in which they came; those that wait for others of the same
    /// asker are not ahead of anybody else's.
    pub(crate) async fn permit(&self) -> Permit<'_> {
        // Only a closed semaphore gives none, and these are never closed.
        let of_asker = self.permits.acquire().await.ok();
        Permit { _of_asker: of_asker, _of_all: self.shares.permits.acquire().await.ok() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(1);
        if let Some(share) = held.askers.get_mut(&self.asker) {
            share.slots = share.slots.saturating_sub(1);
            if share.slots == 0 {
                held.askers.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn community(n: u128) -> Asker {
        Asker::Community(uuid::Uuid::from_u128(n).into())
    }

    #[test]
    fn a_community_leaves_an_eighth_of_what_the_others_leave_and_gives_back_what_it_has() {
        let shares = Shares::new(16, 2, 16);
        let take = |of: Asker| -> Vec<Slot> { std::iter::from_fn(|| shares.take(of)).collect() };
        let (first, second, third) = (take(community(1)), take(Asker::Nobody), take(Asker::Operators));
        assert_eq!((first.len(), second.len(), third.len()), (14, 1, 1));
        drop(first);
        assert_eq!(take(community(3)).len(), 12);
        drop((second, third));
        let held = shares.held.lock().unwrap();
        assert_eq!((held.total, held.askers.len()), (0, 0), "nothing is remembered");
    }

    #[test]
    fn operators_and_those_who_look_for_a_community_do_not_share() {
        use crate::api::{Endpoint, admin::HideProfile, community::Find, profiles::Ranked};
        let id = CommunityId::new(uuid::Uuid::from_u128(7));
        let of = |endpoint: &'static Description| Asker::of(endpoint, &endpoint.subject(id));
        assert_eq!(of(HideProfile::DESCRIPTION), Asker::Operators);
        assert_eq!(of(Find::DESCRIPTION), Asker::Nobody);
        assert_eq!(of(Ranked::DESCRIPTION), Asker::Community(id));
    }

    #[test]
    fn one_slot_is_enough_for_one_request() {
        let shares = Shares::new(1, 1, 1);
        let slot = shares.take(community(1));
        assert!(slot.is_some() && shares.take(community(2)).is_none());
        drop(slot);
        assert!(shares.take(community(2)).is_some());
    }

    #[tokio::test]
    async fn a_bounded_number_of_a_communitys_requests_and_of_all_runs_at_once() {
        let shares = Shares::new(16, 2, 3);
        let slots = [1, 1, 1, 2, 3].map(|n| shares.take(community(n)).unwrap());
        let waits = async |slot: &Slot| {
            tokio::time::timeout(std::time::Duration::from_millis(20), slot.permit()).await.is_err()
        };
        let first = slots[0].permit().await;
        let _second = slots[1].permit().await;
        assert!(waits(&slots[2]).await, "two of one community run");
        let others = slots[3].permit().await;
        assert!(waits(&slots[4]).await, "three run");
        drop(others);
        drop(slots[4].permit().await);
        drop(first);
        drop(slots[2].permit().await);
    }
}
