//! Counts the events that the stream took and dropped before they were applied.
//!
//! A durable consumer goes through the stream in one direction. After so many deliveries it has passed the stream up to some
//! sequence, and each delivery passes one sequence, or none where it is a repetition. Whatever it passes beyond that was not
//! there any more: `(sequences passed) - (deliveries made)` events, at least, were dropped unread. Both numbers stand on every
//! delivery and in what the server tells of the consumer. They count for all replicas together, so that each replica sees
//! every loss, from the first delivery after it at the latest, whoever got the deliveries in between: the replicas' counts
//! are not to be added up. Repetitions that went to another replica in between make the count too low, never too high.
//!
//! What is found so is held against the stream: only a sequence that the stream does not have any more is counted, and each
//! only once. A server that comes back with an older state of the consumer is seen by deliveries that go backwards.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::waiting::Came;

/// The most gaps that wait to be held against the stream; beyond, neighbours are taken together.
const MAX_SUSPECTS: usize = 1024;
/// The most repetitions that are remembered until the deliveries before them are accounted for.
const MAX_REPETITIONS: usize = 64 * 1024;

/// The counting of one reader.
#[derive(Debug, Default)]
pub(super) struct Losses {
    state: Mutex<State>,
    total: AtomicU64,
}

/// Which sequences a stream has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// The first.
    pub(super) first: u64,
    /// Those above the first that were deleted, in order.
    pub(super) deleted: Vec<u64>,
}

impl Held {
    /// How many of the sequences above `after` and below `before` it does not have.
    fn absent(&self, after: u64, before: u64) -> u64 {
        let below = self.first.min(before).saturating_sub(after.saturating_add(1));
        let from = self.deleted.partition_point(|&deleted| deleted <= after);
        let to = self.deleted.partition_point(|&deleted| deleted < before);
        let within = self.deleted.get(from..to).unwrap_or_default();
        let inside = within.iter().filter(|&&deleted| deleted >= self.first).count();
        below.saturating_add(count(inside))
    }

    /// Whether it has this sequence no more.
    pub(super) fn lacks(&self, sequence: u64) -> bool {
        sequence < self.first || self.deleted.binary_search(&sequence).is_ok()
    }
}

/// The sequences above `after` and below `before`, of which so many were not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspect {
    after: u64,
    before: u64,
    undelivered: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Deliveries, and up to which sequence they passed the stream. `None` until that is known.
    stand: Option<(u64, u64)>,
    /// The highest sequence that was ever passed: what is below is not counted a second time.
    highest: u64,
    /// Repetitions that came here beyond the deliveries of `stand`.
    repetitions: BTreeSet<u64>,
    suspects: VecDeque<Suspect>,
    others: Others,
}

/// Whether the consumer delivers to others, too.
#[derive(Debug, Default)]
struct Others {
    /// Deliveries before this reader began, those that came here since, and the last of them.
    before: u64,
    own: u64,
    last: u64,
    /// The most that seem to have gone elsewhere, and since when it is so many.
    elsewhere: u64,
    since: Option<Instant>,
    /// What the server told last of its deliveries, and how many had come here by then.
    told: Option<(u64, u64)>,
}

impl Others {
    fn went(&mut self, elsewhere: u64, now: Instant) {
        if elsewhere > self.elsewhere {
            (self.elsewhere, self.since) = (elsewhere, Some(now));
        }
    }
}

impl State {
    fn begin(&mut self, deliveries: u64, passed: u64) {
        self.stand = Some((deliveries, passed));
        self.highest = self.highest.max(passed);
        self.repetitions.clear();
    }

    /// Passes the stream up to `passed`, of which what is below `before` may not have been delivered.
    fn advance(&mut self, deliveries: u64, passed: u64, before: u64) {
        let Some((known, after)) = self.stand else { return };
        let later = self.repetitions.split_off(&deliveries.saturating_add(1));
        let repeated = std::mem::replace(&mut self.repetitions, later);
        let made = deliveries.saturating_sub(known).saturating_sub(count(repeated.len()));
        let undelivered = passed.saturating_sub(after).saturating_sub(made);
        let suspect = Suspect { after: after.max(self.highest), before, undelivered };
        if undelivered > 0 && suspect.before > suspect.after.saturating_add(1) {
            self.suspect(suspect);
        }
        self.stand = Some((deliveries, passed));
        self.highest = self.highest.max(passed);
    }

    fn suspect(&mut self, suspect: Suspect) {
        let is_full = self.suspects.len() >= MAX_SUSPECTS;
        match self.suspects.back_mut() {
            Some(last) if is_full => {
                last.before = suspect.before;
                last.undelivered = last.undelivered.saturating_add(suspect.undelivered);
            }
            _ => self.suspects.push_back(suspect),
        }
    }

    fn delivered(&mut self, came: Came, now: Instant) {
        let Some((deliveries, passed)) = self.stand else { return };
        self.others.own = self.others.own.saturating_add(1);
        self.others.last = self.others.last.max(came.delivery);
        let all = self.others.last.saturating_sub(self.others.before);
        self.others.went(all.saturating_sub(self.others.own), now);
        let is_first = came.deliveries <= 1;
        if is_first && (came.delivery > deliveries) == (came.sequence > passed) {
            if came.delivery > deliveries {
                self.advance(came.delivery, came.sequence, came.sequence);
            }
        } else if is_first {
            // The server has gone back to an older state.
            self.begin(came.delivery, came.sequence);
        } else if came.delivery == deliveries.saturating_add(1) {
            self.stand = Some((came.delivery, passed));
        } else if came.delivery > deliveries && self.repetitions.len() < MAX_REPETITIONS {
            self.repetitions.insert(came.delivery);
        }
    }

    fn stands(&mut self, deliveries: u64, passed: u64, now: Instant) {
        let Some((before, after)) = self.stand else {
            self.others = Others { before: deliveries, last: deliveries, ..Others::default() };
            return self.begin(deliveries, passed);
        };
        // What is on its way here is told of already; what does not come between two looks went elsewhere.
        let told = (deliveries, self.others.own);
        if self.others.told.replace(told) == Some(told) {
            let all = deliveries.saturating_sub(self.others.before);
            self.others.went(all.saturating_sub(self.others.own), now);
        }
        if deliveries >= before && passed >= after {
            self.advance(deliveries, passed, passed.saturating_add(1));
        }
    }
}

impl Losses {
    // A panic with the lock held leaves numbers that are whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events are known to have been lost so far.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Takes note of a delivery.
    pub(super) fn delivered(&self, came: Came) {
        self.lock().delivered(came, Instant::now());
    }

    /// Takes note of where the consumer stands by the server's own words: after so many deliveries it has passed this
    /// sequence. What the stream did not have before that was asked, `first` being the first that it had, is passed as well.
    pub(super) fn stands(&self, deliveries: u64, passed: u64, first: u64) {
        let mut state = self.lock();
        let now = Instant::now();
        state.stands(deliveries, passed, now);
        let gone = first.saturating_sub(1);
        if state.stand.is_some_and(|(made, passed)| made == deliveries && passed < gone) {
            state.advance(deliveries, gone, first);
        }
    }

    /// Forgets where the consumer stands, for the server may come back with an older state.
    pub(super) fn lose_sight(&self) {
        self.lock().stand = None;
    }

    /// Since when no delivery went to another reader, as far as is known; `None` when none ever did.
    pub(super) fn last_elsewhere(&self) -> Option<Instant> {
        self.lock().others.since
    }

    /// Whether something is to be held against the stream.
    pub(super) fn suspects(&self) -> bool {
        !self.lock().suspects.is_empty()
    }

    /// Takes what is to be held against the stream, which is to be asked after this.
    pub(super) fn take(&self) -> Vec<Suspect> {
        self.lock().suspects.drain(..).collect()
    }

    /// Gives back what could not be held against the stream.
    pub(super) fn give_back(&self, suspects: Vec<Suspect>) {
        let mut state = self.lock();
        for suspect in suspects {
            state.suspect(suspect);
        }
    }

    /// Counts what the stream does not have any more, and besides what was put off and is known to be gone.
    pub(super) fn count(&self, suspects: &[Suspect], held: &Held, put_off: u64) -> u64 {
        let lost = suspects
            .iter()
            .map(|suspect| suspect.undelivered.min(held.absent(suspect.after, suspect.before)))
            .fold(put_off, u64::saturating_add);
        self.total.fetch_add(lost, Ordering::Relaxed);
        lost
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn came(sequence: u64, delivery: u64, deliveries: u32) -> Came {
        Came { sequence, delivery, deliveries, bytes: 1 }
    }

    fn begun(deliveries: u64, passed: u64) -> Losses {
        let losses = Losses::default();
        losses.stands(deliveries, passed, 1);
        losses
    }

    fn counted(losses: &Losses, first: u64, deleted: &[u64]) -> u64 {
        let suspects = losses.take();
        losses.count(&suspects, &Held { first, deleted: deleted.to_vec() }, 0)
    }

    #[test]
    fn a_gap_in_what_is_delivered_is_counted_once() {
        let losses = begun(0, 0);
        (1..=5_000).for_each(|n| losses.delivered(came(n, n, 1)));
        assert!(!losses.suspects());
        losses.delivered(came(40_001, 5_001, 1));
        assert_eq!(counted(&losses, 40_001, &[]), 35_000);
        losses.delivered(came(40_002, 5_002, 1));
        assert!(!losses.suspects());
        assert_eq!(losses.total(), 35_000);
    }

    #[test]
    fn each_of_two_readers_counts_a_loss_and_none_where_the_other_got_the_rest() {
        let losses = begun(0, 0);
        for n in (1..=1_000).step_by(2) {
            losses.delivered(came(n, n, 1));
        }
        assert!(!losses.suspects(), "every other delivery went to the other");
        losses.delivered(came(2_010, 1_010, 1));
        assert_eq!(counted(&losses, 2_000, &[]), 1_000);
        assert!(losses.last_elsewhere().is_some());
    }

    #[test]
    fn repetitions_that_came_here_pass_nothing() {
        let losses = begun(0, 0);
        losses.delivered(came(1, 1, 1));
        losses.delivered(came(1, 2, 2));
        losses.delivered(came(1, 5, 3));
        losses.delivered(came(4, 6, 1));
        assert!(!losses.suspects(), "two went to the other");
        losses.delivered(came(4, 7, 2));
        losses.delivered(came(10, 8, 1));
        assert_eq!(counted(&losses, 1, &[5, 6, 7, 8, 9]), 5);
        let late = begun(10, 10);
        late.delivered(came(3, 14, 2));
        late.delivered(came(11, 11, 1));
        assert!(!late.suspects(), "a repetition after it says nothing of it");
    }

    #[test]
    fn what_the_stream_still_has_is_not_counted() {
        let losses = begun(0, 0);
        losses.delivered(came(11, 1, 1));
        assert_eq!(counted(&losses, 1, &[3, 4]), 2);
        losses.delivered(came(21, 2, 1));
        assert_eq!(counted(&losses, 1, &[]), 0);
        losses.delivered(came(31, 3, 1));
        assert_eq!(counted(&losses, 25, &[24, 26]), 4, "22, 23, 24 below the first, and 26");
    }

    #[test]
    fn what_is_gone_ahead_of_the_reader_is_counted_and_not_again_when_it_is_passed() {
        let losses = begun(10, 10);
        losses.stands(10, 10, 111);
        assert_eq!(counted(&losses, 111, &[]), 100);
        losses.stands(10, 10, 111);
        losses.delivered(came(111, 11, 1));
        losses.stands(11, 111, 111);
        assert!(!losses.suspects());
        losses.stands(11, 211, 212);
        assert_eq!(counted(&losses, 212, &[]), 100, "a purge moves the consumer without a delivery");
    }

    #[test]
    fn a_server_that_goes_back_makes_no_loss() {
        let losses = begun(0, 0);
        (1..=100).for_each(|n| losses.delivered(came(n, n, 1)));
        (101..=150).for_each(|n| losses.delivered(came(n - 100, n, 2)));
        losses.delivered(came(101, 91, 1));
        losses.delivered(came(102, 92, 1));
        losses.delivered(came(95, 120, 1));
        losses.delivered(came(103, 121, 1));
        assert_eq!(counted(&losses, 200, &[]), 0);
        losses.lose_sight();
        losses.delivered(came(500, 500, 1));
        losses.stands(130, 110, 1);
        losses.delivered(came(111, 131, 1));
        assert!(!losses.suspects());
    }

    #[test]
    fn gaps_without_number_take_bounded_room_and_are_all_counted() {
        let losses = begun(0, 0);
        for n in 1..=5_000 {
            losses.delivered(came(n * 2, n, 1));
        }
        assert!(losses.lock().suspects.len() <= MAX_SUSPECTS);
        let odd: Vec<u64> = (0..5_000).map(|n| n * 2 + 1).collect();
        assert_eq!(counted(&losses, 1, &odd), 5_000);
    }

    #[test]
    fn deliveries_that_do_not_come_here_went_elsewhere() {
        let mut state = State::default();
        let (begin, later) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(5));
        state.stands(0, 0, begin);
        state.delivered(came(1, 1, 1), begin);
        state.stands(5, 5, begin);
        assert_eq!(state.others.since, None, "they may be on their way");
        state.stands(5, 5, later);
        assert_eq!(state.others.since, Some(later));
    }
}
