//! What was taken from the stream and waits to be worked on: a queue for each community, which take turns.
//!
//! The stream is one line. Read in its order, one community's flood would hold up whatever stands behind it, so reading runs
//! ahead: what is beyond a community's share is put off, and comes again about when its turn is due.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use muster_domain::GuildId;
use tokio::time::Instant;

/// The most that waits, over all communities.
const MAX_ITEMS: usize = 32 * 1024;
/// The most bytes of it.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How many a second a lane is taken to work on before one has.
const FIRST_RATE: f64 = 20_000.0;
/// What is put off comes sooner than reckoned, for a queue that ran empty would leave its lane idle.
const HASTE: f64 = 1.5;
/// What is put off comes back in steps of this, for the broker looks through all that is pending each time that some does.
const STEP: Duration = Duration::from_millis(500);
/// The longest that anything is put off.
const LONGEST: Duration = Duration::from_secs(30);

/// Whose queue it is. What cannot be read belongs to no community, and takes turns like one.
pub(super) type Owner = Option<GuildId>;

/// The queues.
pub(super) struct Waiting<T> {
    queues: HashMap<Owner, Queue<T>>,
    /// Owners that have something waiting and are not being worked on, the next first.
    turns: VecDeque<Owner>,
    items: usize,
    bytes: usize,
    begun: Instant,
    /// How many a second a lane works on.
    rate: f64,
}

struct Queue<T> {
    items: VecDeque<(usize, T)>,
    bytes: usize,
    /// Worked on by a lane; no other takes of it meanwhile, for it would only wait for the community's lock.
    busy: bool,
    /// When the last of what was put off is due.
    due: Instant,
}

/// What a lane takes to work on.
pub(super) struct Taken<T> {
    pub(super) items: Vec<T>,
    /// To be given to [`Waiting::release`].
    pub(super) owners: Vec<Owner>,
}

impl<T> Waiting<T> {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            queues: HashMap::new(),
            turns: VecDeque::new(),
            items: 0,
            bytes: 0,
            begun: now,
            rate: FIRST_RATE,
        }
    }

    /// Puts an item at the end of its owner's queue. An owner has room for half of what the others leave, so that there is
    /// room for the next however many flood.
    ///
    /// # Errors
    /// Without room, the item comes back with how long it is to be put off.
    pub(super) fn put(
        &mut self,
        owner: Owner,
        bytes: usize,
        item: T,
        now: Instant,
    ) -> Result<(), (T, Duration)> {
        let begun = self.begun;
        let queue = self.queues.entry(owner.clone()).or_insert_with(|| Queue {
            items: VecDeque::new(),
            bytes: 0,
            busy: false,
            due: begun,
        });
        let others = (self.items - queue.items.len(), self.bytes - queue.bytes);
        let room = (MAX_ITEMS.saturating_sub(others.0) / 2, MAX_BYTES.saturating_sub(others.1) / 2);
        if queue.items.len() >= room.0 || queue.bytes.saturating_add(bytes) > room.1 {
            let rate = self.rate * HASTE;
            // Half of what waits here is done when the first of what is put off comes back.
            let ahead = Duration::from_secs_f64(count(queue.items.len()) / rate / 2.0);
            queue.due = queue.due.max(now + ahead) + Duration::from_secs_f64(1.0 / rate);
            queue.due = queue.due.min(now + LONGEST);
            let step = u32::try_from(STEP.as_millis()).unwrap_or(1);
            let since = queue.due.duration_since(begun).as_millis() / u128::from(step);
            let due = begun + STEP * u32::try_from(since.saturating_add(1)).unwrap_or(u32::MAX);
            return Err((item, due.saturating_duration_since(now)));
        }
        if queue.items.is_empty() && !queue.busy {
            self.turns.push_back(owner);
        }
        queue.items.push_back((bytes, item));
        queue.bytes += bytes;
        self.items += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Takes up to `most` items of up to `bytes`, owner by owner in turn, of none that is being worked on. One at least,
    /// if there is any.
    pub(super) fn take(&mut self, most: usize, bytes: usize) -> Option<Taken<T>> {
        let mut taken = Taken { items: Vec::new(), owners: Vec::new() };
        let mut room = bytes;
        while taken.items.len() < most
            && let Some(owner) = self.turns.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&owner) else { continue };
            let before = taken.items.len();
            while taken.items.len() < most
                && let Some((bytes, item)) =
                    queue.items.pop_front_if(|(bytes, _)| *bytes <= room || taken.items.is_empty())
            {
                room = room.saturating_sub(bytes);
                queue.bytes -= bytes;
                self.bytes -= bytes;
                self.items -= 1;
                taken.items.push(item);
            }
            if taken.items.len() == before {
                self.turns.push_front(owner);
                break;
            }
            queue.busy = true;
            taken.owners.push(owner);
        }
        (!taken.items.is_empty()).then_some(taken)
    }

    /// Lets others work on these owners again, who stand at the end of the line; `worked` says how many were worked on in
    /// which time.
    pub(super) fn release(&mut self, owners: Vec<Owner>, worked: Option<(usize, Duration)>) {
        for owner in owners {
            let Some(queue) = self.queues.get_mut(&owner) else { continue };
            queue.busy = false;
            if !queue.items.is_empty() {
                self.turns.push_back(owner);
            }
        }
        // Few tell more of the commit than of themselves.
        if let Some((number, took)) = worked.filter(|(number, _)| *number >= 100) {
            self.rate += (count(number) / took.as_secs_f64().max(1e-3) - self.rate) / 4.0;
        }
    }

    /// All that waits.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.queues.values().flat_map(|queue| queue.items.iter().map(|(_, item)| item))
    }

    /// Empties the queues.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.turns.clear();
        (self.items, self.bytes) = (0, 0);
        self.queues.drain().flat_map(|(_, queue)| queue.items.into_iter().map(|(_, item)| item)).collect()
    }

    /// Forgets owners of whom nothing waits, is worked on or was put off until later than `now`.
    pub(super) fn forget(&mut self, now: Instant) {
        self.queues.retain(|_, queue| !queue.items.is_empty() || queue.busy || queue.due > now);
    }
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: usize) -> Owner {
        Some(GuildId::parse(number.to_string()).unwrap())
    }

    fn flooded(now: Instant) -> (Waiting<usize>, usize, Duration) {
        let mut waiting = Waiting::new(now);
        let mut put = (0..MAX_ITEMS).map(|number| waiting.put(owner(1), 100, number, now));
        let (item, delay) = put.find_map(Result::err).expect("a queue has a bound");
        (waiting, item, delay)
    }

    #[test]
    fn a_flood_leaves_half_of_the_room_and_the_next_half_of_that() {
        let now = Instant::now();
        let (mut waiting, first, _) = flooded(now);
        assert_eq!(first, MAX_ITEMS / 2);
        let second = (0..).find(|number| waiting.put(owner(2), 100, *number, now).is_err());
        assert_eq!(second, Some(MAX_ITEMS / 4));
        assert!(waiting.put(owner(3), 100, 0, now).is_ok());
        assert_eq!(waiting.iter().count(), MAX_ITEMS / 2 + MAX_ITEMS / 4 + 1);
    }

    #[test]
    fn bytes_are_bounded_as_items_are() {
        let now = Instant::now();
        let mut waiting = Waiting::new(now);
        let refused = (0..).find(|_| waiting.put(owner(1), 256 * 1024, (), now).is_err());
        assert_eq!(refused, Some(MAX_BYTES / 2 / (256 * 1024)));
    }

    #[test]
    fn communities_take_turns_and_none_is_worked_on_twice_at_once() {
        let now = Instant::now();
        let (mut waiting, ..) = flooded(now);
        waiting.put(owner(2), 100, 7, now).unwrap();
        waiting.put(owner(3), 100, 8, now).unwrap();
        let first = waiting.take(500, MAX_BYTES).unwrap();
        assert_eq!((first.items.len(), &first.owners), (500, &vec![owner(1)]));
        let second = waiting.take(500, MAX_BYTES).unwrap();
        assert_eq!((second.items, &second.owners), (vec![7, 8], &vec![owner(2), owner(3)]));
        assert!(waiting.take(500, MAX_BYTES).is_none(), "all are being worked on");
        waiting.put(owner(2), 100, 9, now).unwrap();
        waiting.release(first.owners, Some((500, Duration::from_millis(100))));
        waiting.release(second.owners, None);
        let third = waiting.take(2, MAX_BYTES).unwrap();
        assert_eq!((third.items, third.owners), (vec![500, 501], vec![owner(1)]));
        assert_eq!(waiting.take(500, MAX_BYTES).unwrap().items, [9]);
    }

    #[test]
    fn a_batch_ends_at_its_bytes_but_has_one_item() {
        let now = Instant::now();
        let mut waiting = Waiting::new(now);
        for number in 0..3 {
            waiting.put(owner(1), 100, number, now).unwrap();
        }
        let first = waiting.take(500, 250).unwrap();
        assert_eq!(first.items, [0, 1]);
        waiting.release(first.owners, None);
        assert_eq!(waiting.take(500, 1).unwrap().items, [2]);
    }

    #[test]
    fn what_is_put_off_comes_back_as_fast_as_it_is_worked_on() {
        let now = Instant::now();
        let (mut waiting, ..) = flooded(now);
        waiting.rate = 1000.0;
        let delays: Vec<Duration> =
            (0..15_000).map(|number| waiting.put(owner(1), 100, number, now).unwrap_err().1).collect();
        assert!(delays.is_sorted());
        let within = |seconds| delays.iter().filter(|delay| **delay <= Duration::from_secs(seconds)).count();
        assert!((6000..=7600).contains(&(within(12) - within(7))), "{}", within(12) - within(7));
        let (_, longest) = (0..100_000)
            .map(|number| waiting.put(owner(1), 100, number, now).unwrap_err())
            .next_back()
            .unwrap();
        assert!(longest <= LONGEST + STEP, "{longest:?}");
    }

    #[test]
    fn an_owner_is_forgotten_when_nothing_of_it_is_left() {
        let now = Instant::now();
        let (mut waiting, _, delay) = flooded(now);
        let taken = waiting.take(MAX_ITEMS, usize::MAX).unwrap();
        waiting.forget(now + delay * 2);
        assert_eq!(waiting.queues.len(), 1, "it is being worked on");
        waiting.release(taken.owners, None);
        waiting.forget(now);
        assert_eq!(waiting.queues.len(), 1, "some was put off");
        waiting.forget(now + delay * 2);
        assert!(waiting.queues.is_empty());
    }
}
