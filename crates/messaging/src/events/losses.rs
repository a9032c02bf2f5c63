//! Counts the events that the stream stored and dropped before they were applied.
//!
//! A durable consumer passes through the stream in one direction. Each delivery advances it by one sequence, or by none if it is
//! a redelivery. If it has advanced further than that, the sequences between were already deleted: at least
//! `(sequences passed) - (deliveries made)` events were dropped unread. Every delivery carries both numbers, and so does the
//! consumer's info. They count for all replicas together, so each replica sees every loss, with the first delivery after it at
//! the latest: the replicas' counts must not be added up. Redeliveries to another replica make the count too low, never too
//! high.
//!
//! Each gap that is found is compared with the stream: only a sequence that the stream no longer has is counted, and only once.
//! If the server restores an older state of the consumer, deliveries go backwards.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::delivery::Delivery;

/// The most gaps that wait to be compared with the stream; beyond that, neighbours are merged.
const MAX_GAPS: usize = 1024;
/// The most redeliveries that are remembered until the deliveries before them are accounted for.
const MAX_REDELIVERIES: usize = 64 * 1024;

/// The losses that one reader has counted.
#[derive(Debug, Default)]
pub(super) struct Losses {
    state: Mutex<State>,
    total: AtomicU64,
}

/// The sequences that a stream has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// The first.
    pub(super) first: u64,
    /// The deleted ones above the first, in order.
    pub(super) deleted: Vec<u64>,
}

impl Stored {
    /// How many of the sequences above `after` and below `before` it does not have.
    fn missing(&self, after: u64, before: u64) -> u64 {
        let below = self.first.min(before).saturating_sub(after.saturating_add(1));
        let from = self.deleted.partition_point(|&deleted| deleted <= after);
        let to = self.deleted.partition_point(|&deleted| deleted < before);
        let within = self.deleted.get(from..to).unwrap_or_default();
        let inside = within.iter().filter(|&&deleted| deleted >= self.first).count();
        below.saturating_add(count(inside))
    }

    /// Whether it no longer has this sequence.
    pub(super) fn lacks(&self, sequence: u64) -> bool {
        sequence < self.first || self.deleted.binary_search(&sequence).is_ok()
    }
}

/// The sequences above `after` and below `before`, of which so many were not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    after: u64,
    before: u64,
    undelivered: u64,
}

#[derive(Debug, Default)]
struct State {
    /// The number of deliveries, and up to which sequence they passed. `None` until that is known.
    position: Option<(u64, u64)>,
    /// The highest sequence that was ever passed: those below are not counted a second time.
    highest: u64,
    /// Redeliveries to this reader beyond the deliveries of `position`.
    redeliveries: BTreeSet<u64>,
    gaps: VecDeque<Gap>,
    others: OtherReaders,
}

/// Whether the consumer delivers to other readers, too.
#[derive(Debug, Default)]
struct OtherReaders {
    /// Deliveries before this reader began, those to this reader since, and the last of them.
    before: u64,
    own: u64,
    last: u64,
    /// The most that seem to have gone to others, and since when.
    elsewhere: u64,
    since: Option<Instant>,
    /// The deliveries that the server reported last, and those to this reader by then.
    reported: Option<(u64, u64)>,
}

impl OtherReaders {
    fn note(&mut self, elsewhere: u64, now: Instant) {
        if elsewhere > self.elsewhere {
            (self.elsewhere, self.since) = (elsewhere, Some(now));
        }
    }
}

impl State {
    fn start_at(&mut self, deliveries: u64, passed: u64) {
        self.position = Some((deliveries, passed));
        self.highest = self.highest.max(passed);
        self.redeliveries.clear();
    }

    /// Moves to `passed`; sequences below `before` may not have been delivered.
    fn advance(&mut self, deliveries: u64, passed: u64, before: u64) {
        let Some((known, after)) = self.position else { return };
        let later = self.redeliveries.split_off(&deliveries.saturating_add(1));
        let redelivered = std::mem::replace(&mut self.redeliveries, later);
        let made = deliveries.saturating_sub(known).saturating_sub(count(redelivered.len()));
        let undelivered = passed.saturating_sub(after).saturating_sub(made);
        let gap = Gap { after: after.max(self.highest), before, undelivered };
        if undelivered > 0 && gap.before > gap.after.saturating_add(1) {
            self.add_gap(gap);
        }
        self.position = Some((deliveries, passed));
        self.highest = self.highest.max(passed);
    }

    fn add_gap(&mut self, gap: Gap) {
        let is_full = self.gaps.len() >= MAX_GAPS;
        match self.gaps.back_mut() {
            Some(last) if is_full => {
                last.before = gap.before;
                last.undelivered = last.undelivered.saturating_add(gap.undelivered);
            }
            _ => self.gaps.push_back(gap),
        }
    }

    fn delivered(&mut self, delivery: Delivery, now: Instant) {
        let Some((deliveries, passed)) = self.position else { return };
        self.others.own = self.others.own.saturating_add(1);
        self.others.last = self.others.last.max(delivery.consumer_sequence);
        let all = self.others.last.saturating_sub(self.others.before);
        self.others.note(all.saturating_sub(self.others.own), now);
        let is_first = delivery.deliveries <= 1;
        if is_first && (delivery.consumer_sequence > deliveries) == (delivery.stream_sequence > passed) {
            if delivery.consumer_sequence > deliveries {
                self.advance(delivery.consumer_sequence, delivery.stream_sequence, delivery.stream_sequence);
            }
        } else if is_first {
            // The server has restored an older state.
            self.start_at(delivery.consumer_sequence, delivery.stream_sequence);
        } else if delivery.consumer_sequence == deliveries.saturating_add(1) {
            self.position = Some((delivery.consumer_sequence, passed));
        } else if delivery.consumer_sequence > deliveries && self.redeliveries.len() < MAX_REDELIVERIES {
            self.redeliveries.insert(delivery.consumer_sequence);
        }
    }

    fn consumer_at(&mut self, deliveries: u64, passed: u64, now: Instant) {
        let Some((before, after)) = self.position else {
            self.others = OtherReaders { before: deliveries, last: deliveries, ..OtherReaders::default() };
            return self.start_at(deliveries, passed);
        };
        // The server counts deliveries that are still on their way; one that does not arrive between two checks went elsewhere.
        let reported = (deliveries, self.others.own);
        if self.others.reported.replace(reported) == Some(reported) {
            let all = deliveries.saturating_sub(self.others.before);
            self.others.note(all.saturating_sub(self.others.own), now);
        }
        if deliveries >= before && passed >= after {
            self.advance(deliveries, passed, passed.saturating_add(1));
        }
    }
}

impl Losses {
    // A panic with the lock held leaves a consistent state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events are known to be lost so far.
    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Notes a delivery.
    pub(super) fn delivered(&self, delivery: Delivery) {
        self.lock().delivered(delivery, Instant::now());
    }

    /// Notes the consumer's position as the server reports it: after so many deliveries it has passed this sequence. `first`
    /// is the stream's first sequence, read before that: those below it are passed as well.
    pub(super) fn consumer_at(&self, deliveries: u64, passed: u64, first: u64) {
        let mut state = self.lock();
        let now = Instant::now();
        state.consumer_at(deliveries, passed, now);
        let gone = first.saturating_sub(1);
        if state.position.is_some_and(|(made, passed)| made == deliveries && passed < gone) {
            state.advance(deliveries, gone, first);
        }
    }

    /// Forgets the consumer's position, since the server may restore an older state.
    pub(super) fn forget_position(&self) {
        self.lock().position = None;
    }

    /// When a delivery to another reader was noticed last; `None` if there was none.
    pub(super) fn last_elsewhere(&self) -> Option<Instant> {
        self.lock().others.since
    }

    /// Whether a gap is to be compared with the stream.
    pub(super) fn has_gaps(&self) -> bool {
        !self.lock().gaps.is_empty()
    }

    /// Takes the gaps that are to be compared with the stream, which must be asked after this.
    pub(super) fn take_gaps(&self) -> Vec<Gap> {
        self.lock().gaps.drain(..).collect()
    }

    /// Puts back gaps that could not be compared with the stream.
    pub(super) fn put_back(&self, gaps: Vec<Gap>) {
        let mut state = self.lock();
        for gap in gaps {
            state.add_gap(gap);
        }
    }

    /// Counts the events in gaps that the stream no longer has, and so many deferred ones that are known to be deleted.
    pub(super) fn count(&self, gaps: &[Gap], stored: &Stored, deferred: u64) -> u64 {
        let lost = gaps
            .iter()
            .map(|gap| gap.undelivered.min(stored.missing(gap.after, gap.before)))
            .fold(deferred, u64::saturating_add);
        self.total.fetch_add(lost, Ordering::Relaxed);
        lost
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn delivery(stream_sequence: u64, consumer_sequence: u64, deliveries: u32) -> Delivery {
        Delivery {
            stream_sequence,
            consumer_sequence,
            deliveries,
            bytes: 1,
            stored: OffsetDateTime::UNIX_EPOCH,
        }
    }

    fn losses_at(deliveries: u64, passed: u64) -> Losses {
        let losses = Losses::default();
        losses.consumer_at(deliveries, passed, 1);
        losses
    }

    fn counted(losses: &Losses, first: u64, deleted: &[u64]) -> u64 {
        let gaps = losses.take_gaps();
        losses.count(&gaps, &Stored { first, deleted: deleted.to_vec() }, 0)
    }

    #[test]
    fn a_gap_between_deliveries_is_counted_once() {
        let losses = losses_at(0, 0);
        (1..=5_000).for_each(|n| losses.delivered(delivery(n, n, 1)));
        assert!(!losses.has_gaps());
        losses.delivered(delivery(40_001, 5_001, 1));
        assert_eq!(counted(&losses, 40_001, &[]), 35_000);
        losses.delivered(delivery(40_002, 5_002, 1));
        assert!(!losses.has_gaps());
        assert_eq!(losses.total(), 35_000);
    }

    #[test]
    fn deliveries_to_another_reader_are_no_loss_and_each_reader_counts_a_real_one() {
        let losses = losses_at(0, 0);
        for n in (1..=1_000).step_by(2) {
            losses.delivered(delivery(n, n, 1));
        }
        assert!(!losses.has_gaps(), "every other delivery went to the other");
        losses.delivered(delivery(2_010, 1_010, 1));
        assert_eq!(counted(&losses, 2_000, &[]), 1_000);
        assert!(losses.last_elsewhere().is_some());
    }

    #[test]
    fn redeliveries_do_not_advance_the_consumer() {
        let losses = losses_at(0, 0);
        losses.delivered(delivery(1, 1, 1));
        losses.delivered(delivery(1, 2, 2));
        losses.delivered(delivery(1, 5, 3));
        losses.delivered(delivery(4, 6, 1));
        assert!(!losses.has_gaps(), "two went to the other");
        losses.delivered(delivery(4, 7, 2));
        losses.delivered(delivery(10, 8, 1));
        assert_eq!(counted(&losses, 1, &[5, 6, 7, 8, 9]), 5);
        let late = losses_at(10, 10);
        late.delivered(delivery(3, 14, 2));
        late.delivered(delivery(11, 11, 1));
        assert!(!late.has_gaps(), "a redelivery after it says nothing about it");
    }

    #[test]
    fn events_that_the_stream_still_has_are_not_counted() {
        let losses = losses_at(0, 0);
        losses.delivered(delivery(11, 1, 1));
        assert_eq!(counted(&losses, 1, &[3, 4]), 2);
        losses.delivered(delivery(21, 2, 1));
        assert_eq!(counted(&losses, 1, &[]), 0);
        losses.delivered(delivery(31, 3, 1));
        assert_eq!(counted(&losses, 25, &[24, 26]), 4, "22, 23, 24 below the first, and 26");
    }

    #[test]
    fn events_deleted_ahead_of_the_consumer_are_counted_once() {
        let losses = losses_at(10, 10);
        losses.consumer_at(10, 10, 111);
        assert_eq!(counted(&losses, 111, &[]), 100);
        losses.consumer_at(10, 10, 111);
        losses.delivered(delivery(111, 11, 1));
        losses.consumer_at(11, 111, 111);
        assert!(!losses.has_gaps());
        losses.consumer_at(11, 211, 212);
        assert_eq!(counted(&losses, 212, &[]), 100, "a purge moves the consumer without a delivery");
    }

    #[test]
    fn a_server_that_restores_an_older_state_causes_no_loss() {
        let losses = losses_at(0, 0);
        (1..=100).for_each(|n| losses.delivered(delivery(n, n, 1)));
        (101..=150).for_each(|n| losses.delivered(delivery(n - 100, n, 2)));
        losses.delivered(delivery(101, 91, 1));
        losses.delivered(delivery(102, 92, 1));
        losses.delivered(delivery(95, 120, 1));
        losses.delivered(delivery(103, 121, 1));
        assert_eq!(counted(&losses, 200, &[]), 0);
        losses.forget_position();
        losses.delivered(delivery(500, 500, 1));
        losses.consumer_at(130, 110, 1);
        losses.delivered(delivery(111, 131, 1));
        assert!(!losses.has_gaps());
    }

    #[test]
    fn any_number_of_gaps_takes_bounded_memory_and_all_are_counted() {
        let losses = losses_at(0, 0);
        for n in 1..=5_000 {
            losses.delivered(delivery(n * 2, n, 1));
        }
        assert!(losses.lock().gaps.len() <= MAX_GAPS);
        let odd: Vec<u64> = (0..5_000).map(|n| n * 2 + 1).collect();
        assert_eq!(counted(&losses, 1, &odd), 5_000);
    }

    #[test]
    fn deliveries_that_do_not_arrive_went_to_another_reader() {
        let mut state = State::default();
        let (begin, later) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(5));
        state.consumer_at(0, 0, begin);
        state.delivered(delivery(1, 1, 1), begin);
        state.consumer_at(5, 5, begin);
        assert_eq!(state.others.since, None, "they may be on their way");
        state.consumer_at(5, 5, later);
        assert_eq!(state.others.since, Some(later));
    }
}
