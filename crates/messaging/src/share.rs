//! Places for requests, shared among communities: one that asks for more than the service can answer waits for itself, and the
//! next community does not wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_domain::CommunityId;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// The places. A community may have seven eighths of those that the others leave, and a place is not yet a turn: of its requests only so
/// many are worked on at once. What names no community shares one part.
#[derive(Debug)]
pub(crate) struct Shares {
    places: usize,
    at_once: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    /// Those that hold a place, and no others: as many as there are places at most.
    communities: HashMap<Option<CommunityId>, Community>,
}

#[derive(Debug)]
struct Community {
    places: usize,
    turns: Arc<Semaphore>,
}

/// One place, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    shares: Arc<Shares>,
    community: Option<CommunityId>,
    turns: Arc<Semaphore>,
}

impl Shares {
    pub(crate) fn new(places: usize, at_once: usize) -> Arc<Self> {
        Arc::new(Self { places, at_once: at_once.max(1), held: Mutex::default() })
    }

    /// A place for a request of this community; `None` when it has its share, or all are taken.
    pub(crate) fn take(self: &Arc<Self>, community: Option<CommunityId>) -> Option<Place> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let has = held.communities.get(&community).map_or(0, |it| it.places);
        let left_by_others = self.places.saturating_sub(held.total.saturating_sub(has));
        let share = left_by_others.saturating_sub(left_by_others.div_ceil(8)).max(1);
        if held.total >= self.places || has >= share {
            return None;
        }
        held.total = held.total.saturating_add(1);
        let entry = held
            .communities
            .entry(community)
            .or_insert_with(|| Community { places: 0, turns: Arc::new(Semaphore::new(self.at_once)) });
        entry.places = entry.places.saturating_add(1);
        let turns = Arc::clone(&entry.turns);
        Some(Place { shares: Arc::clone(self), community, turns })
    }
}

impl Place {
    /// Waits for its turn among the requests of its community, which come in the order in which they asked.
    ///
    /// # Errors
    /// Never: nobody closes what it waits for.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.turns.acquire().await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.shares.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.total = held.total.saturating_sub(1);
        if let Some(community) = held.communities.get_mut(&self.community) {
            community.places = community.places.saturating_sub(1);
            if community.places == 0 {
                held.communities.remove(&self.community);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn community(n: u128) -> Option<CommunityId> {
        Some(uuid::Uuid::from_u128(n).into())
    }

    #[test]
    fn a_community_leaves_an_eighth_of_what_the_others_leave_and_gives_back_what_it_has() {
        let shares = Shares::new(16, 2);
        let take =
            |of: Option<CommunityId>| -> Vec<Place> { std::iter::from_fn(|| shares.take(of)).collect() };
        let (first, second, third) = (take(community(1)), take(community(2)), take(None));
        assert_eq!((first.len(), second.len(), third.len()), (14, 1, 1));
        drop(first);
        assert_eq!(take(community(3)).len(), 12);
        drop((second, third));
        let held = shares.held.lock().unwrap();
        assert_eq!((held.total, held.communities.len()), (0, 0), "nothing is remembered");
    }

    #[test]
    fn one_place_is_enough_for_one_request() {
        let shares = Shares::new(1, 1);
        let place = shares.take(community(1));
        assert!(place.is_some() && shares.take(community(2)).is_none());
        drop(place);
        assert!(shares.take(community(2)).is_some());
    }

    #[tokio::test]
    async fn of_one_community_so_many_are_worked_on_at_once() {
        let shares = Shares::new(16, 2);
        let places = [1, 1, 1, 2].map(|n| shares.take(community(n)).unwrap());
        let first = places[0].turn().await.unwrap();
        let _second = places[1].turn().await.unwrap();
        let third = tokio::time::timeout(std::time::Duration::from_millis(20), places[2].turn());
        assert!(third.await.is_err());
        drop(places[3].turn().await.unwrap());
        drop(first);
        drop(places[2].turn().await.unwrap());
    }
}
