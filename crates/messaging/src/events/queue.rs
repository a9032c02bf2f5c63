//! A queue for each community, from which lanes take batches in turn. A community's queue is split by the stripe of its members,
//! and several lanes may work on different stripes at once.
//!
//! The stream has one order. Read in that order, a flood of one community would delay everything behind it. So the reader runs
//! ahead, and defers events beyond a community's share of the queue: only their numbers are remembered, by which the broker is
//! asked to deliver them again when there is room.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use muster_domain::Stripe;
use tokio::time::Instant;

use super::delivery::Delivery;
use super::ready::{Owner, ReadyOwners};

/// The most items in all queues.
const MAX_ITEMS: usize = 32 * 1024;
/// The most bytes in all queues.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Deferred events are asked for again until their queue has so many items: some tenths of a second of work, longer than a
/// redelivery takes. No more, because redeliveries come before new events of any community.
const REFILL_TO: usize = 4096;
/// The most deferred events that are remembered, in some 20 MB, and the most communities with nothing but deferred ones, in some
/// 25 MB. Those beyond are delivered again after the broker's wait.
const MAX_DEFERRED: usize = 512 * 1024;
const MAX_OWNERS: usize = 32 * 1024;
/// The most items of an owner whose items failed, and the part of all room that such owners may have together. They wait for as long as
/// its fault lasts, and others need the room.
const MAX_PAUSED: usize = 256;
const PAUSED_PART: usize = 4;
/// After this long, an event that was asked for and not delivered here has gone to another replica.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// The most requested events that are remembered until they are delivered, and for how many seconds.
const MAX_REQUESTED: usize = 64 * 1024;
const REQUESTED_SECONDS: u32 = 60;

/// All queues.
pub(super) struct FairQueue<T> {
    /// How many lanes may work on one queue at once.
    lanes: usize,
    queues: HashMap<Owner, Queue<T>>,
    /// Owners with a stripe to take from.
    ready: ReadyOwners,
    /// Owners whose items failed.
    paused: HashMap<Owner, Pause>,
    items: usize,
    bytes: usize,
    deferred: usize,
    /// Events that were asked for again and not delivered yet, with the second of the request.
    requested: BTreeMap<u64, u32>,
    /// How many owners are passed over before deferred events are asked for, so that the last ones get their turn, too.
    turn: usize,
    /// From when seconds are counted.
    since: Instant,
}

/// How an owner whose items failed is treated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// None of its items is taken until then.
    Until(Instant),
    /// Its items are taken, but in batches of their own until one succeeds, so that they delay no others.
    Probation,
}

struct Queue<T> {
    /// By the stripe's number.
    stripes: Vec<StripeQueue<T>>,
    /// The stripe that is taken from next, so that none is passed over for longer ones.
    next: usize,
    /// Whether the owner is in `ready`.
    is_ready: bool,
    /// How many lanes work on it.
    lanes: usize,
    bytes: usize,
    /// Deferred events by their sequence in the stream.
    deferred: BTreeMap<u64, Deferred>,
    /// How many events, and bytes, were asked for again and not delivered yet, and since when this is counted.
    requested: (usize, usize),
    requested_since: Option<Instant>,
}

/// The items of one stripe, with their bytes.
struct StripeQueue<T> {
    items: VecDeque<(usize, T)>,
    /// Whether a lane works on it. Others take none of it meanwhile: they would only wait for the stripe's lock.
    busy: bool,
}

/// What is remembered of a deferred event: enough to ask for it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deferred {
    pub(super) consumer_sequence: u64,
    pub(super) deliveries: u32,
    bytes: u32,
    /// The second of its delivery.
    second: u32,
}

/// What a lane takes.
pub(super) struct Taken<T> {
    pub(super) items: Vec<T>,
    /// The stripes that they are from, to be given to [`FairQueue::release`].
    pub(super) stripes: Vec<(Owner, Stripe)>,
}

impl<T> Queue<T> {
    fn new() -> Self {
        Self {
            stripes: Stripe::all().map(|_| StripeQueue { items: VecDeque::new(), busy: false }).collect(),
            next: 0,
            is_ready: false,
            lanes: 0,
            bytes: 0,
            deferred: BTreeMap::new(),
            requested: (0, 0),
            requested_since: None,
        }
    }

    fn stripe(&mut self, stripe: Stripe) -> Option<&mut StripeQueue<T>> {
        self.stripes.get_mut(usize::from(stripe.number()))
    }

    fn items(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.items.len()).sum()
    }

    /// Whether nothing is left to be done for it.
    fn is_idle(&self) -> bool {
        self.items() == 0 && self.lanes == 0 && self.deferred.is_empty()
    }

    /// Whether there is a stripe to take from.
    fn has_free_stripe(&self) -> bool {
        self.stripes.iter().any(|stripe| !stripe.busy && !stripe.items.is_empty())
    }

    /// Notes the delivery of an event that may have been asked for.
    fn delivered(&mut self, delivery: Delivery) {
        if delivery.is_repeated() {
            let (items, bytes) = self.requested;
            self.requested = (items.saturating_sub(1), bytes.saturating_sub(delivery.bytes));
        }
    }
}

impl<T> FairQueue<T> {
    /// An empty queue, with one lane for each community.
    pub(super) fn new() -> Self {
        Self {
            lanes: 1,
            queues: HashMap::new(),
            ready: ReadyOwners::new(),
            paused: HashMap::new(),
            items: 0,
            bytes: 0,
            deferred: 0,
            requested: BTreeMap::new(),
            turn: 0,
            since: Instant::now(),
        }
    }

    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.since).as_secs()).unwrap_or(u32::MAX)
    }

    fn at(&self, second: u32) -> Instant {
        self.since + Duration::from_secs(u64::from(second))
    }

    /// Lets so many lanes work on one queue at once from now on.
    pub(super) fn set_lanes(&mut self, lanes: usize) {
        if self.lanes == lanes {
            return;
        }
        self.lanes = lanes;
        let owners: Vec<Owner> = self.queues.keys().cloned().collect();
        for owner in owners {
            self.make_ready(owner);
        }
    }

    /// Whether there is room for an item. A new event must wait behind deferred ones.
    pub(super) fn has_room(&self, owner: &Owner, delivery: Delivery) -> bool {
        let queue = self.queues.get(owner);
        let own = queue.map_or((0, 0), |queue| (queue.items(), queue.bytes));
        let room = room((self.items, self.bytes), own, most_of(&self.paused, owner));
        let is_next = delivery.is_repeated() || queue.is_none_or(|queue| queue.deferred.is_empty());
        let fits = room.0 > 0 && room.1 >= delivery.bytes;
        is_next && (fits || is_first((self.items, self.bytes), own, delivery.bytes))
    }

    /// Adds an item to its stripe.
    pub(super) fn push(&mut self, owner: Owner, stripe: Stripe, delivery: Delivery, item: T) {
        self.requested.remove(&delivery.stream_sequence);
        let queue = self.queues.entry(owner.clone()).or_insert_with(Queue::new);
        match queue.deferred.remove(&delivery.stream_sequence) {
            Some(_) => self.deferred -= 1,
            None => queue.delivered(delivery),
        }
        let Some(stripe) = queue.stripe(stripe) else { return };
        stripe.items.push_back((delivery.bytes, item));
        queue.bytes += delivery.bytes;
        self.items += 1;
        self.bytes += delivery.bytes;
        self.make_ready(owner);
    }

    /// Puts items of an owner back to the front, with their bytes. None of its items is taken until the time has come. Returns
    /// those that it may not keep meanwhile, to be [deferred](Self::defer_queued).
    pub(super) fn pause(&mut self, owner: Owner, items: Vec<(Stripe, usize, T)>, until: Instant) -> Vec<T> {
        self.paused.insert(owner.clone(), Pause::Until(until));
        let most = most_of(&self.paused, &owner);
        let queue = self.queues.entry(owner).or_insert_with(Queue::new);
        for (stripe, bytes, item) in items.into_iter().rev() {
            let Some(stripe) = queue.stripe(stripe) else { continue };
            stripe.items.push_front((bytes, item));
            queue.bytes += bytes;
            self.items += 1;
            self.bytes += bytes;
        }
        let mut excess = Vec::new();
        let mut left = queue.items();
        while left > 1 && (left > most.0 || queue.bytes > most.1) {
            let longest = queue.stripes.iter_mut().max_by_key(|stripe| stripe.items.len());
            let Some((bytes, item)) = longest.and_then(|stripe| stripe.items.pop_back()) else { break };
            left -= 1;
            queue.bytes -= bytes;
            self.items -= 1;
            self.bytes -= bytes;
            excess.push(item);
        }
        excess
    }

    /// Puts owners whose pause is over on probation; returns whether there is one.
    pub(super) fn resume_due(&mut self, now: Instant) -> bool {
        let is_due = |pause: &Pause| matches!(pause, Pause::Until(until) if *until <= now);
        let due: Vec<Owner> =
            self.paused.iter().filter(|(_, pause)| is_due(pause)).map(|(owner, _)| owner.clone()).collect();
        for owner in &due {
            self.paused.insert(owner.clone(), Pause::Probation);
            self.make_ready(owner.clone());
        }
        !due.is_empty()
    }

    /// Items of an owner were applied: its probation ends.
    pub(super) fn recovered(&mut self, owner: &Owner) {
        // Others of its items may have failed since.
        if self.paused.get(owner) == Some(&Pause::Probation) {
            self.paused.remove(owner);
        }
    }

    /// Whether any owner is paused or on probation.
    pub(super) fn has_paused(&self) -> bool {
        !self.paused.is_empty()
    }

    fn is_paused(&self, owner: &Owner) -> bool {
        matches!(self.paused.get(owner), Some(Pause::Until(_)))
    }

    /// Adds the owner to `ready`, unless it is there, is paused or has nothing to take.
    fn make_ready(&mut self, owner: Owner) {
        if self.is_paused(&owner) {
            return;
        }
        if let Some(queue) = self.queues.get_mut(&owner)
            && !queue.is_ready
            && queue.lanes < self.lanes
            && queue.has_free_stripe()
        {
            queue.is_ready = true;
            self.ready.push_back(owner);
        }
    }

    /// Remembers an event that was delivered and that there is no room for.
    pub(super) fn defer(&mut self, owner: Owner, delivery: Delivery) {
        self.requested.remove(&delivery.stream_sequence);
        if let Some(queue) = self.queues.get_mut(&owner)
            && !queue.deferred.contains_key(&delivery.stream_sequence)
        {
            queue.delivered(delivery);
        }
        self.defer_queued(owner, delivery);
    }

    /// The same of an event that was in the queue.
    pub(super) fn defer_queued(&mut self, owner: Owner, delivery: Delivery) {
        let second = self.second(Instant::now());
        if self.queues.len() >= MAX_OWNERS && !self.queues.contains_key(&owner) {
            return;
        }
        let queue = self.queues.entry(owner).or_insert_with(Queue::new);
        if !queue.deferred.contains_key(&delivery.stream_sequence) {
            if self.deferred >= MAX_DEFERRED {
                return;
            }
            self.deferred += 1;
        }
        let Delivery { consumer_sequence, deliveries, bytes, .. } = delivery;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let deferred = Deferred { consumer_sequence, deliveries, bytes, second };
        queue.deferred.insert(delivery.stream_sequence, deferred);
    }

    /// Takes the deferred events that are to be delivered again now, with their stream sequences, the oldest of each owner first. Of all
    /// owners together no more than there is room for: what came without room would be deferred again.
    pub(super) fn take_deferred(&mut self, now: Instant) -> Vec<(u64, Deferred)> {
        if self.deferred == 0 {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        let mut all = (self.items, self.bytes);
        let mut waiting = 0_usize;
        for queue in self.queues.values_mut() {
            if queue.requested_since.is_some_and(|since| now.duration_since(since) > REQUEST_TIMEOUT) {
                (queue.requested, queue.requested_since) = ((0, 0), None);
            }
            all = (all.0 + queue.requested.0, all.1 + queue.requested.1);
            waiting += usize::from(!queue.deferred.is_empty());
        }
        let share = (MAX_ITEMS / 2 / waiting.max(1)).clamp(1, REFILL_TO);
        let owners = self.queues.len().max(1);
        let first = self.turn % owners;
        self.turn = (first + 1 + owners / 8) % owners;
        for is_before in [false, true] {
            for (place, (owner, queue)) in self.queues.iter_mut().enumerate() {
                let is_paused = matches!(self.paused.get(owner), Some(Pause::Until(_)));
                if (place < first) != is_before || is_paused || queue.deferred.is_empty() {
                    continue;
                }
                let own = (queue.items() + queue.requested.0, queue.bytes + queue.requested.1);
                let (mut room_items, mut room_bytes) = room(all, own, most_of(&self.paused, owner));
                if let Some(next) = queue.deferred.values().next().map(bytes_of)
                    && (room_items == 0 || room_bytes < next)
                    && is_first(all, own, next)
                {
                    (room_items, room_bytes) = (1, next);
                }
                let mut wanted_items = room_items.min(share.saturating_sub(own.0));
                while wanted_items > 0
                    && let Some(next) = queue.deferred.first_entry()
                    && let bytes = bytes_of(next.get())
                    && let Some(left) = room_bytes.checked_sub(bytes)
                {
                    wanted.push(next.remove_entry());
                    self.deferred -= 1;
                    queue.requested = (queue.requested.0 + 1, queue.requested.1 + bytes);
                    queue.requested_since.get_or_insert(now);
                    all = (all.0 + 1, all.1 + bytes);
                    (wanted_items, room_bytes) = (wanted_items - 1, left);
                }
            }
        }
        let second = self.second(now);
        for (sequence, _) in &wanted {
            if self.requested.len() < MAX_REQUESTED {
                self.requested.insert(*sequence, second);
            }
        }
        wanted
    }

    /// Forgets deferred and requested events that the stream deleted, so that they cannot be delivered again. Returns how many
    /// of them no other reader can have: `is_lost` gets the time until which the broker kept one for this reader.
    pub(super) fn forget_deleted(
        &mut self,
        ack_wait: Duration,
        is_deleted: impl Fn(u64) -> bool,
        is_lost: impl Fn(Instant) -> bool,
    ) -> u64 {
        let mut lost = 0_u64;
        let mut deleted = Vec::new();
        for queue in self.queues.values_mut() {
            let before = queue.deferred.len();
            queue.deferred.retain(|sequence, deferred| {
                let is_deleted = is_deleted(*sequence);
                if is_deleted {
                    deleted.push(deferred.second);
                }
                !is_deleted
            });
            self.deferred -= before - queue.deferred.len();
        }
        for second in deleted {
            lost += u64::from(is_lost(self.at(second) + ack_wait));
        }
        let now = self.second(Instant::now());
        let mut requested = std::mem::take(&mut self.requested);
        requested.retain(|sequence, second| {
            let is_deleted = is_deleted(*sequence);
            // Since the request, the broker may have delivered it to any reader.
            lost += u64::from(is_deleted && is_lost(self.at(*second)));
            !is_deleted && now.saturating_sub(*second) <= REQUESTED_SECONDS
        });
        self.requested = requested;
        lost
    }

    /// Takes up to `max_items` items of up to `max_bytes` of one shard, owner by owner in turn and stripe by stripe, of no stripe that
    /// a lane works on; at least one, if there is any. Once something is taken, a stripe that does not fit whole is begun only
    /// if half of the batch is free: its rest would wait for too little.
    pub(super) fn take(&mut self, max_items: usize, max_bytes: usize) -> Option<Taken<T>> {
        let mut taken = Taken { items: Vec::new(), stripes: Vec::new() };
        let mut room = max_bytes;
        let (mut again, mut shard) = (Vec::new(), None);
        while taken.items.len() < max_items
            && let Some((of, owner)) = self.ready.pop(shard)
        {
            let is_paused = self.is_paused(&owner);
            let Some(queue) = self.queues.get_mut(&owner) else { continue };
            queue.is_ready = false;
            if queue.lanes >= self.lanes || is_paused {
                // It was paused, or fewer lanes are allowed, since it became ready; it becomes ready again after that.
                continue;
            }
            let is_on_probation = self.paused.contains_key(&owner);
            if is_on_probation && !taken.items.is_empty() {
                queue.is_ready = true;
                self.ready.push_front(owner);
                break;
            }
            let stripes_before = taken.stripes.len();
            let (first, stripes) = (queue.next, queue.stripes.len());
            for number in Stripe::all().cycle().skip(first).take(stripes) {
                let Some(stripe) = queue.stripe(number) else { continue };
                let left = max_items - taken.items.len();
                let is_first = taken.stripes.len() == stripes_before;
                if stripe.busy || !(is_first || stripe.items.len() <= left || left >= max_items / 2) {
                    continue;
                }
                let (before, mut taken_bytes) = (taken.items.len(), 0);
                while taken.items.len() < max_items
                    && let Some((bytes, item)) =
                        stripe.items.pop_front_if(|(bytes, _)| *bytes <= room || taken.items.is_empty())
                {
                    room = room.saturating_sub(bytes);
                    taken_bytes += bytes;
                    taken.items.push(item);
                }
                let items = taken.items.len() - before;
                if items > 0 {
                    stripe.busy = true;
                    self.items -= items;
                    (queue.bytes, self.bytes) = (queue.bytes - taken_bytes, self.bytes - taken_bytes);
                    queue.next = (usize::from(number.number()) + 1) % stripes;
                    taken.stripes.push((owner.clone(), number));
                }
            }
            if taken.stripes.len() == stripes_before {
                queue.is_ready = true;
                self.ready.push_front(owner);
                break;
            }
            queue.lanes += 1;
            shard = Some(of);
            again.push(owner);
            if is_on_probation {
                break;
            }
        }
        if let Some(shard) = shard {
            self.ready.end_turn(shard);
        }
        for owner in again {
            self.make_ready(owner);
        }
        (!taken.items.is_empty()).then_some(taken)
    }

    /// Ends a lane's work on the stripes that it took; their owners go to the end of `ready`.
    pub(super) fn release(&mut self, mut stripes: Vec<(Owner, Stripe)>) {
        for (owner, stripe) in &stripes {
            if let Some(stripe) = self.queues.get_mut(owner).and_then(|queue| queue.stripe(*stripe)) {
                stripe.busy = false;
            }
        }
        // A lane takes its stripes of one owner together.
        stripes.dedup_by(|(one, _), (other, _)| one == other);
        for (owner, _) in stripes {
            let Some(queue) = self.queues.get_mut(&owner) else { continue };
            queue.lanes = queue.lanes.saturating_sub(1);
            if queue.is_idle() {
                // However many communities come one after the other, those with nothing left take no memory.
                self.queues.remove(&owner);
            } else {
                self.make_ready(owner);
            }
        }
    }

    /// All items, without deferred events.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let stripes = self.queues.values().flat_map(|queue| &queue.stripes);
        stripes.flat_map(|stripe| stripe.items.iter().map(|(_, item)| item))
    }

    /// Removes everything: the items, and the deferred events.
    pub(super) fn drain(&mut self) -> (Vec<T>, Vec<(u64, Deferred)>) {
        self.ready.clear();
        self.paused.clear();
        (self.items, self.bytes, self.deferred) = (0, 0, 0);
        self.requested.clear();
        let (mut items, mut deferred) = (Vec::new(), Vec::new());
        for (_, queue) in self.queues.drain() {
            items.extend(queue.stripes.into_iter().flat_map(|stripe| stripe.items).map(|(_, item)| item));
            deferred.extend(queue.deferred);
        }
        (items, deferred)
    }

    /// Removes owners without items, deferred events and lanes.
    pub(super) fn remove_idle(&mut self) {
        self.queues.retain(|_, queue| !queue.is_idle());
        self.paused.retain(|owner, _| self.queues.contains_key(owner));
    }
}

/// How many more items and bytes an owner with its `own` may queue when `all` are queued: half of what the others leave, so that
/// there is room for the next one however many flood, and `most` at most.
fn room(all: (usize, usize), own: (usize, usize), most: (usize, usize)) -> (usize, usize) {
    let others = (all.0.saturating_sub(own.0), all.1.saturating_sub(own.1));
    (
        (MAX_ITEMS.saturating_sub(others.0) / 2).min(most.0).saturating_sub(own.0),
        (MAX_BYTES.saturating_sub(others.1) / 2).min(most.1).saturating_sub(own.1),
    )
}

/// Whether an owner with nothing queued may queue an item, however small its part is: it would else never be tried again.
fn is_first(all: (usize, usize), own: (usize, usize), bytes: usize) -> bool {
    own.0 == 0 && all.0 < MAX_ITEMS && bytes <= MAX_BYTES.saturating_sub(all.1) / 2
}

/// The most items and bytes of an owner.
fn most_of(paused: &HashMap<Owner, Pause>, owner: &Owner) -> (usize, usize) {
    if !paused.contains_key(owner) {
        return (MAX_ITEMS, MAX_BYTES);
    }
    let share = |of: usize| of / PAUSED_PART / paused.len().max(1);
    (share(MAX_ITEMS).clamp(1, MAX_PAUSED), share(MAX_BYTES))
}

fn bytes_of(deferred: &Deferred) -> usize {
    usize::try_from(deferred.bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use muster_domain::{GuildId, Shard};
    use time::OffsetDateTime;

    use super::*;

    /// An owner by its number. All are of one shard.
    fn owner(number: usize) -> Owner {
        let guilds = (0..).map(|number: u32| GuildId::parse(number.to_string()).unwrap());
        guilds.filter(|guild| Shard::of(guild) == Shard::default()).nth(number)
    }

    fn first_stripe(number: usize) -> (Owner, Stripe) {
        (owner(number), Stripe::default())
    }

    /// The first delivery of a small event.
    fn delivery(number: usize) -> Delivery {
        let sequence = u64::try_from(number).unwrap();
        let stored = OffsetDateTime::UNIX_EPOCH;
        Delivery { stream_sequence: sequence, consumer_sequence: sequence, deliveries: 1, bytes: 100, stored }
    }

    /// Queues or defers an event; returns whether there was room.
    fn offer(queue: &mut FairQueue<usize>, owner: Owner, delivery: Delivery) -> bool {
        let has_room = queue.has_room(&owner, delivery);
        if has_room {
            queue.push(
                owner,
                Stripe::default(),
                delivery,
                usize::try_from(delivery.stream_sequence).unwrap(),
            );
        } else {
            queue.defer(owner, delivery);
        }
        has_room
    }

    fn flooded(events: usize) -> FairQueue<usize> {
        let mut queue = FairQueue::new();
        for number in 0..events {
            offer(&mut queue, owner(1), delivery(number));
        }
        queue
    }

    #[test]
    fn a_flood_gets_half_of_the_queue_and_the_next_one_half_of_the_rest() {
        let mut queue = flooded(20_000);
        assert_eq!(queue.items, MAX_ITEMS / 2);
        assert_eq!(queue.deferred, 20_000 - MAX_ITEMS / 2);
        let second = (0..).find(|number| !offer(&mut queue, owner(2), delivery(*number)));
        assert_eq!(second, Some(MAX_ITEMS / 4));
        assert!(offer(&mut queue, owner(3), delivery(0)));
        assert_eq!(queue.iter().count(), MAX_ITEMS / 2 + MAX_ITEMS / 4 + 1);
    }

    #[test]
    fn bytes_are_bounded_like_items() {
        let mut queue = FairQueue::new();
        let large = |number| Delivery { bytes: 256 * 1024, ..delivery(number) };
        let refused = (0..).find(|number| !offer(&mut queue, owner(1), large(*number)));
        assert_eq!(refused, Some(MAX_BYTES / 2 / (256 * 1024)));
    }

    #[test]
    fn communities_take_turns_and_no_stripe_is_taken_twice_at_once() {
        let mut queue = flooded(20_000);
        offer(&mut queue, owner(2), delivery(7));
        offer(&mut queue, owner(3), delivery(8));
        let first = queue.take(500, MAX_BYTES).unwrap();
        assert_eq!((first.items.len(), &first.stripes), (500, &vec![first_stripe(1)]));
        let second = queue.take(500, MAX_BYTES).unwrap();
        assert_eq!((second.items, &second.stripes), (vec![7, 8], &vec![first_stripe(2), first_stripe(3)]));
        assert!(queue.take(500, MAX_BYTES).is_none(), "all are taken");
        offer(&mut queue, owner(2), delivery(9));
        queue.release(first.stripes);
        queue.release(second.stripes);
        let third = queue.take(2, MAX_BYTES).unwrap();
        assert_eq!((third.items, third.stripes), (vec![500, 501], vec![first_stripe(1)]));
        assert_eq!(queue.take(500, MAX_BYTES).unwrap().items, [9]);
    }

    #[test]
    fn several_lanes_take_different_stripes_of_one_community_and_skip_none() {
        let [one, two, three, four] = Stripe::all().collect::<Vec<_>>().try_into().unwrap();
        let stripes = || {
            let mut queue = FairQueue::new();
            for (stripe, numbers) in
                [(one, 0..150), (two, 1000..1150), (three, 2000..2010), (four, 3000..3150)]
            {
                for number in numbers {
                    queue.push(owner(1), stripe, delivery(number), number);
                }
            }
            queue
        };
        let mut queue = stripes();
        let first = queue.take(10, MAX_BYTES).unwrap();
        assert!(queue.take(10, MAX_BYTES).is_none(), "one lane is allowed");
        queue.set_lanes(2);
        let taken = [first, queue.take(10, MAX_BYTES).unwrap()];
        assert!(queue.take(10, MAX_BYTES).is_none(), "one lane is kept for others");
        queue.push(owner(2), one, delivery(0), 7);
        let others = queue.take(10, MAX_BYTES).unwrap();
        assert_eq!((others.items, others.stripes), (vec![7], vec![(owner(2), one)]));
        for taken in taken {
            queue.release(taken.stripes);
        }
        let mut queue = stripes();
        queue.set_lanes(3);
        let first = queue.take(100, MAX_BYTES).unwrap();
        assert_eq!((first.items, &first.stripes), ((0..100).collect(), &vec![(owner(1), one)]));
        let second = queue.take(100, MAX_BYTES).unwrap();
        assert_eq!((second.items, &second.stripes), ((1000..1100).collect(), &vec![(owner(1), two)]));
        let third = queue.take(100, MAX_BYTES).unwrap();
        assert_eq!(third.items, (2000..2010).chain(3000..3090).collect::<Vec<_>>());
        assert_eq!(third.stripes, [(owner(1), three), (owner(1), four)], "most of the batch was free");
        assert!(queue.take(100, MAX_BYTES).is_none(), "all are taken");
        queue.release(third.stripes);
        queue.release(first.stripes);
        queue.release(second.stripes);
        let fourth = queue.take(100, MAX_BYTES).unwrap();
        assert_eq!(fourth.items, (100..150).chain(1100..1150).collect::<Vec<_>>());
        assert_eq!(queue.take(100, MAX_BYTES).unwrap().items, (3090..3150).collect::<Vec<_>>());
        assert_eq!((queue.items, queue.bytes), (0, 0));
        let mut queue = stripes();
        queue.set_lanes(2);
        let first = queue.take(100, MAX_BYTES).unwrap();
        queue.set_lanes(1);
        assert!(queue.take(100, MAX_BYTES).is_none(), "fewer lanes are allowed since");
        queue.release(first.stripes);
        assert!(queue.take(100, MAX_BYTES).is_some());
    }

    #[test]
    fn a_batch_is_bounded_in_bytes_but_has_at_least_one_item() {
        let mut queue = flooded(3);
        let first = queue.take(500, 250).unwrap();
        assert_eq!(first.items, [0, 1]);
        queue.release(first.stripes);
        assert_eq!(queue.take(500, 1).unwrap().items, [2]);
    }

    #[test]
    fn deferred_events_are_requested_in_order_when_there_is_room() {
        let now = Instant::now();
        let mut queue = flooded(30_000);
        assert_eq!(queue.take_deferred(now), [], "enough is queued");
        queue.take(MAX_ITEMS / 2 - 1000, usize::MAX).unwrap();
        let requested: Vec<u64> =
            queue.take_deferred(now).into_iter().map(|(sequence, _)| sequence).collect();
        let first = u64::try_from(MAX_ITEMS / 2).unwrap();
        assert_eq!(requested, (first..first + 3096).collect::<Vec<_>>());
        assert_eq!(queue.take_deferred(now), [], "they were requested");
        assert!(!offer(&mut queue, owner(1), delivery(30_000)), "a new event waits behind deferred ones");
        for sequence in &requested {
            let again = Delivery { deliveries: 2, ..delivery(usize::try_from(*sequence).unwrap()) };
            assert!(offer(&mut queue, owner(1), again));
        }
        assert_eq!(queue.take_deferred(now), [], "they were delivered");
        queue.release(vec![first_stripe(1)]);
        queue.take(10, usize::MAX).unwrap();
        assert_eq!(queue.take_deferred(now).len(), 10);
        let elsewhere = queue.take_deferred(now + REQUEST_TIMEOUT * 2);
        assert_eq!(elsewhere.len(), 10, "those not delivered went to another replica");
    }

    #[test]
    fn no_more_events_of_many_communities_are_requested_than_there_is_room_for() {
        let now = Instant::now();
        let mut queue = FairQueue::new();
        let owners: Vec<Owner> = (0..300).map(owner).collect();
        let mut sequence = 0;
        for _ in 0..400 {
            for owner in &owners {
                sequence += 1;
                offer(&mut queue, owner.clone(), delivery(sequence));
            }
        }
        assert!(queue.deferred > 50_000, "{}", queue.deferred);
        queue.set_lanes(4);
        while queue.items > MAX_ITEMS / 4 {
            let taken = queue.take(500, MAX_BYTES).unwrap();
            queue.release(taken.stripes);
        }
        let (room, mut requested) = (MAX_ITEMS - queue.items, 0);
        for _ in 0..50 {
            requested += queue.take_deferred(now).len();
        }
        assert!(requested > 0 && requested <= room, "{requested} of {room}");
        // Each gets its turn, however long the others' deferred events last.
        while let Some(taken) = queue.take(500, MAX_BYTES) {
            queue.release(taken.stripes);
        }
        let asked = |queue: &FairQueue<usize>| queue.queues.values().filter(|it| it.requested.0 > 0).count();
        queue.take_deferred(now + REQUEST_TIMEOUT * 2);
        assert_eq!(asked(&queue), 300);
        queue.pause(owner(0), Vec::new(), now + REQUEST_TIMEOUT * 9);
        queue.take_deferred(now + REQUEST_TIMEOUT * 4);
        assert_eq!(asked(&queue), 299, "what may not be applied is not asked for");
    }

    #[test]
    fn communities_of_which_nothing_is_queued_are_remembered_up_to_a_limit() {
        let mut queue = FairQueue::<usize>::new();
        for number in 0..MAX_OWNERS + 1000 {
            queue.defer(Some(GuildId::parse(number.to_string()).unwrap()), delivery(number));
        }
        assert_eq!((queue.queues.len(), queue.deferred), (MAX_OWNERS, MAX_OWNERS));
    }

    #[test]
    fn deferred_events_are_remembered_once_each_up_to_a_limit() {
        let mut queue = flooded(20_000);
        let known = queue.deferred;
        let again = Delivery { consumer_sequence: 77_777, deliveries: 2, ..delivery(19_999) };
        let stripes = &mut queue.queues.get_mut(&owner(1)).unwrap().stripes;
        stripes[0].items.extend(vec![(0, 0); 20_000]);
        assert!(!offer(&mut queue, owner(1), again));
        assert_eq!(queue.deferred, known);
        assert_eq!(queue.drain().1.last().unwrap().1.consumer_sequence, 77_777);
        let mut queue = flooded(MAX_DEFERRED + 20_000);
        assert_eq!(queue.deferred, MAX_DEFERRED);
        assert_eq!(queue.drain().1.len(), MAX_DEFERRED);
        assert!(queue.take_deferred(Instant::now()).is_empty());
    }

    #[test]
    fn a_paused_community_waits_and_is_then_taken_alone_until_it_recovers() {
        let now = Instant::now();
        let mut queue = FairQueue::new();
        for number in 0..3 {
            for item in 0..2 {
                offer(&mut queue, owner(number), delivery(number * 10 + item));
            }
        }
        let first = queue.take(2, MAX_BYTES).unwrap();
        assert_eq!(first.items, [0, 1]);
        let put_back = first.items.into_iter().map(|item| (Stripe::default(), 100, item)).collect();
        queue.pause(owner(0), put_back, now + REQUEST_TIMEOUT);
        queue.release(first.stripes);
        assert_eq!((queue.items, queue.bytes), (6, 600));
        assert!(!queue.resume_due(now));
        let others = queue.take(3, MAX_BYTES).unwrap();
        assert_eq!(others.items, [10, 11, 20], "the others go on");
        queue.release(others.stripes);
        assert!(queue.resume_due(now + REQUEST_TIMEOUT) && !queue.resume_due(now + REQUEST_TIMEOUT));
        assert_eq!(queue.take(9, MAX_BYTES).unwrap().items, [21]);
        let alone = queue.take(9, MAX_BYTES).unwrap();
        assert_eq!(alone.items, [0, 1], "in their order");
        offer(&mut queue, owner(1), delivery(12));
        queue.release(alone.stripes);
        offer(&mut queue, owner(0), delivery(2));
        queue.recovered(&owner(0));
        assert!(!queue.has_paused());
        offer(&mut queue, owner(3), delivery(30));
        assert!(queue.take(9, MAX_BYTES).unwrap().items.len() > 1, "with others again");
        queue.pause(owner(4), Vec::new(), now);
        queue.recovered(&owner(4));
        assert!(queue.has_paused(), "it failed since");
        queue.remove_idle();
        assert!(!queue.has_paused());
    }

    #[test]
    fn a_paused_community_keeps_little_of_the_room_and_asks_for_no_more() {
        let now = Instant::now();
        let mut queue = flooded(20_000);
        let deferred = queue.deferred;
        let excess = queue.pause(owner(1), Vec::new(), now + REQUEST_TIMEOUT);
        assert_eq!((queue.items, excess.len()), (MAX_PAUSED, MAX_ITEMS / 2 - MAX_PAUSED));
        for number in excess {
            queue.defer_queued(owner(1), delivery(number));
        }
        assert_eq!(queue.deferred, deferred + MAX_ITEMS / 2 - MAX_PAUSED);
        assert!(!offer(&mut queue, owner(1), delivery(77_777)), "more of it");
        let others = (0..).find(|number| !offer(&mut queue, owner(2), delivery(*number)));
        assert_eq!(others, Some((MAX_ITEMS - MAX_PAUSED) / 2));
        assert!(queue.resume_due(now + REQUEST_TIMEOUT));
        assert_eq!(queue.take_deferred(now).len(), 0, "on probation it still has its share");
        // Only then the oldest come first.
        let taken = queue.take(MAX_PAUSED, MAX_BYTES).unwrap();
        assert_eq!(taken.items, (0..MAX_PAUSED).collect::<Vec<_>>());
        queue.recovered(&owner(1));
        assert!(queue.take_deferred(now).len() > MAX_PAUSED);
        // However many there are, and however large their events.
        let mut queue = FairQueue::new();
        let owners: Vec<Owner> = (0..1000).map(|number| GuildId::parse(number.to_string()).ok()).collect();
        for owner in &owners {
            for item in 0..40 {
                offer(&mut queue, owner.clone(), Delivery { bytes: 1000, ..delivery(item) });
            }
            queue.pause(owner.clone(), Vec::new(), now);
        }
        for owner in owners {
            queue.pause(owner, Vec::new(), now);
        }
        assert!(queue.items <= MAX_ITEMS / PAUSED_PART && queue.bytes <= MAX_BYTES / PAUSED_PART);
        // One of which nothing is queued is tried with one event, however large that is.
        let mut queue = FairQueue::new();
        for number in 0..100 {
            queue.pause(GuildId::parse(number.to_string()).ok(), Vec::new(), now);
        }
        let large = |number| Delivery { bytes: 1024 * 1024, ..delivery(number) };
        queue.pause(owner(7), Vec::new(), now);
        queue.defer_queued(owner(7), large(1));
        queue.defer_queued(owner(7), large(2));
        assert!(queue.resume_due(now));
        assert_eq!(queue.take_deferred(now).len(), 1);
        assert!(offer(&mut queue, owner(7), Delivery { deliveries: 2, ..large(1) }));
        assert_eq!(queue.take_deferred(now + REQUEST_TIMEOUT * 2).len(), 0, "one at a time");
    }

    #[test]
    fn a_community_with_nothing_queued_deferred_or_taken_is_removed() {
        let mut queue = flooded(MAX_ITEMS / 2 + 1);
        let taken = queue.take(MAX_ITEMS, usize::MAX).unwrap();
        assert_eq!(queue.take_deferred(Instant::now()).len(), 1);
        queue.remove_idle();
        assert_eq!(queue.queues.len(), 1, "a lane works on it");
        queue.release(taken.stripes);
        queue.remove_idle();
        assert!(queue.queues.is_empty());
        let mut queue = flooded(MAX_ITEMS / 2 + 1);
        let taken = queue.take(MAX_ITEMS, usize::MAX).unwrap();
        queue.release(taken.stripes);
        queue.remove_idle();
        assert_eq!(queue.queues.len(), 1, "some events are deferred");
    }
}
