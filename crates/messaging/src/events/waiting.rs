//! What was taken from the stream and waits to be worked on: a queue for each community, which take turns. A queue has a line
//! for each stripe of the community's members, and lanes work on several at once.
//!
//! The stream is one line. Read in its order, one community's flood would hold up whatever stands behind it, so reading runs
//! ahead: what is beyond a community's share is put off. Of that only its number is remembered, by which it is asked for
//! again when its turn comes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use muster_domain::{GuildId, Stripe};
use tokio::time::Instant;

/// The most that waits, over all communities.
const MAX_ITEMS: usize = 32 * 1024;
/// The most bytes of it.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// An owner with fewer waiting has what was put off asked for again, up to this: some tenths of a second of work, longer than
/// asking takes. No more, for what comes again comes before what is new, of whomever.
const ENOUGH: usize = 4096;
/// The most of it that is remembered, in some 20 MB. What is beyond comes again when the broker's wait is over.
const MAX_PUT_OFF: usize = 512 * 1024;
/// After this long, what was asked for and did not come has gone to another replica.
const ASKED: Duration = Duration::from_secs(1);
/// The most of what was asked for that is remembered until it comes, and for how many seconds.
const MAX_ASKED: usize = 64 * 1024;
const ASKED_SECONDS: u32 = 60;

/// Whose queue it is. What names no community that can be read takes turns like one.
pub(super) type Owner = Option<GuildId>;

/// The queues.
pub(super) struct Waiting<T> {
    /// How many lanes may work on one queue at once.
    lanes: usize,
    queues: HashMap<Owner, Queue<T>>,
    /// Owners that have a line to take from, the next first.
    turns: VecDeque<Owner>,
    /// Owners whose items could not be worked on. Until the time, none of theirs is taken; after it they are taken alone, until
    /// it is known that they can be worked on, so that they hold up no others.
    held: HashMap<Owner, Option<Instant>>,
    items: usize,
    bytes: usize,
    put_off: usize,
    /// What was asked for and did not come yet, with the second in which that was.
    asked: BTreeMap<u64, u32>,
    /// From when seconds are counted.
    since: Instant,
}

struct Queue<T> {
    /// By the stripe's number.
    lines: Vec<Line<T>>,
    /// The line that is taken from next, for none is to be passed over for longer ones.
    next: usize,
    /// Whether the owner stands among those whose turn comes.
    has_turn: bool,
    /// How many lanes work on it.
    lanes: usize,
    bytes: usize,
    /// What was put off, by its sequence in the stream.
    put_off: BTreeMap<u64, PutOff>,
    /// How much of it was asked for and did not come yet, since when this is counted.
    asked: usize,
    asked_since: Option<Instant>,
}

/// What waits of one stripe, with its bytes.
struct Line<T> {
    items: VecDeque<(usize, T)>,
    /// Worked on by a lane; no other takes of it meanwhile, for it would only wait for the stripe's lock.
    busy: bool,
}

/// How an event came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Came {
    /// Its sequence in the stream.
    pub(super) sequence: u64,
    /// Its sequence among the consumer's deliveries.
    pub(super) delivery: u64,
    /// How often it was delivered, this time included.
    pub(super) deliveries: u32,
    pub(super) bytes: usize,
}

/// What is remembered of an event that was put off: enough to ask for it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PutOff {
    pub(super) delivery: u64,
    pub(super) deliveries: u32,
    bytes: u32,
    /// In which second it came.
    second: u32,
}

/// What a lane takes to work on.
pub(super) struct Taken<T> {
    pub(super) items: Vec<T>,
    /// The lines that it is of, to be given to [`Waiting::release`].
    pub(super) lines: Vec<(Owner, Stripe)>,
}

impl<T> Queue<T> {
    fn new() -> Self {
        Self {
            lines: Stripe::all().map(|_| Line { items: VecDeque::new(), busy: false }).collect(),
            next: 0,
            has_turn: false,
            lanes: 0,
            bytes: 0,
            put_off: BTreeMap::new(),
            asked: 0,
            asked_since: None,
        }
    }

    fn line(&mut self, stripe: Stripe) -> Option<&mut Line<T>> {
        self.lines.get_mut(usize::from(stripe.number()))
    }

    fn items(&self) -> usize {
        self.lines.iter().map(|line| line.items.len()).sum()
    }

    /// Whether there is a line to take from.
    fn is_free(&self) -> bool {
        self.lines.iter().any(|line| !line.busy && !line.items.is_empty())
    }

    /// Takes note that an event has come that may have been asked for.
    fn came(&mut self, came: Came) {
        if came.deliveries > 1 {
            self.asked = self.asked.saturating_sub(1);
        }
    }
}

impl<T> Waiting<T> {
    /// Queues that one lane each works on.
    pub(super) fn new() -> Self {
        Self {
            lanes: 1,
            queues: HashMap::new(),
            turns: VecDeque::new(),
            held: HashMap::new(),
            items: 0,
            bytes: 0,
            put_off: 0,
            asked: BTreeMap::new(),
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
    pub(super) fn allow(&mut self, lanes: usize) {
        if self.lanes == lanes {
            return;
        }
        self.lanes = lanes;
        let owners: Vec<Owner> = self.queues.keys().cloned().collect();
        for owner in owners {
            self.give_turn(owner);
        }
    }

    /// Whether there is room for an item. What is new stands behind what was put off before it.
    pub(super) fn has_room(&self, owner: &Owner, came: Came) -> bool {
        let queue = self.queues.get(owner);
        let room = room((self.items, self.bytes), queue);
        let is_next = came.deliveries > 1 || queue.is_none_or(|queue| queue.put_off.is_empty());
        room.0 > 0 && room.1 >= came.bytes && is_next
    }

    /// Puts an item at the end of its line. What is of no member goes with the first stripe.
    pub(super) fn put(&mut self, owner: Owner, stripe: Stripe, came: Came, item: T) {
        self.asked.remove(&came.sequence);
        let queue = self.queues.entry(owner.clone()).or_insert_with(Queue::new);
        match queue.put_off.remove(&came.sequence) {
            Some(_) => self.put_off -= 1,
            None => queue.came(came),
        }
        let Some(line) = queue.line(stripe) else { return };
        line.items.push_back((came.bytes, item));
        queue.bytes += came.bytes;
        self.items += 1;
        self.bytes += came.bytes;
        self.give_turn(owner);
    }

    /// Puts items of an owner back to the beginning of their lines, with their bytes. None of its items is taken until the time
    /// has come. There may be more than there is room for then, by what lanes can take at once.
    pub(super) fn hold(&mut self, owner: Owner, items: Vec<(Stripe, usize, T)>, until: Instant) {
        let queue = self.queues.entry(owner.clone()).or_insert_with(Queue::new);
        for (stripe, bytes, item) in items.into_iter().rev() {
            let Some(line) = queue.line(stripe) else { continue };
            line.items.push_front((bytes, item));
            queue.bytes += bytes;
            self.items += 1;
            self.bytes += bytes;
        }
        self.held.insert(owner, Some(until));
    }

    /// Lets owners take turns again whose time has come; answers whether there is one.
    pub(super) fn wake(&mut self, now: Instant) -> bool {
        let is_due = |until: &Option<Instant>| until.is_some_and(|until| until <= now);
        let due: Vec<Owner> =
            self.held.iter().filter(|(_, until)| is_due(until)).map(|(owner, _)| owner.clone()).collect();
        for owner in &due {
            self.held.insert(owner.clone(), None);
            self.give_turn(owner.clone());
        }
        !due.is_empty()
    }

    /// Takes note that an owner's items can be worked on.
    pub(super) fn trust(&mut self, owner: &Owner) {
        // Others of its items may have failed since.
        if self.held.get(owner) == Some(&None) {
            self.held.remove(owner);
        }
    }

    /// Whether any owner's items could not be worked on.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// Has the owner stand at the end of the line of owners, unless it stands there, is held or has nothing to take.
    fn give_turn(&mut self, owner: Owner) {
        if matches!(self.held.get(&owner), Some(Some(_))) {
            return;
        }
        if let Some(queue) = self.queues.get_mut(&owner)
            && !queue.has_turn
            && queue.lanes < self.lanes
            && queue.is_free()
        {
            queue.has_turn = true;
            self.turns.push_back(owner);
        }
    }

    /// Remembers an event that there is no room for.
    pub(super) fn put_off(&mut self, owner: Owner, came: Came) {
        self.asked.remove(&came.sequence);
        let second = self.second(Instant::now());
        let queue = self.queues.entry(owner).or_insert_with(Queue::new);
        let is_known = queue.put_off.contains_key(&came.sequence);
        if !is_known {
            queue.came(came);
            if self.put_off >= MAX_PUT_OFF {
                return;
            }
            self.put_off += 1;
        }
        let bytes = u32::try_from(came.bytes).unwrap_or(u32::MAX);
        let what = PutOff { delivery: came.delivery, deliveries: came.deliveries, bytes, second };
        queue.put_off.insert(came.sequence, what);
    }

    /// What is to be asked for again now, with its sequences, the first put off first; it is no longer remembered.
    pub(super) fn ask(&mut self, now: Instant) -> Vec<(u64, PutOff)> {
        if self.put_off == 0 {
            return Vec::new();
        }
        let mut wanted = Vec::new();
        let all = (self.items, self.bytes);
        for queue in self.queues.values_mut() {
            if queue.asked_since.is_some_and(|since| now.duration_since(since) > ASKED) {
                (queue.asked, queue.asked_since) = (0, None);
            }
            let (room_items, mut room_bytes) = room(all, Some(queue));
            let mut wanted_items =
                room_items.min(ENOUGH.saturating_sub(queue.items())).saturating_sub(queue.asked);
            while wanted_items > 0
                && let Some(first) = queue.put_off.first_entry()
                && let Some(left) = room_bytes.checked_sub(bytes_of(first.get()))
            {
                wanted.push(first.remove_entry());
                self.put_off -= 1;
                queue.asked += 1;
                queue.asked_since.get_or_insert(now);
                (wanted_items, room_bytes) = (wanted_items - 1, left);
            }
        }
        let second = self.second(now);
        for (sequence, _) in &wanted {
            if self.asked.len() < MAX_ASKED {
                self.asked.insert(*sequence, second);
            }
        }
        wanted
    }

    /// Forgets what was put off, or asked for, and `is_gone` from the stream, so that it cannot come again. Answers how many of
    /// them nobody else can have: `is_lost` is told until when the broker kept them for this reader.
    pub(super) fn forget_gone(
        &mut self,
        ack_wait: Duration,
        is_gone: impl Fn(u64) -> bool,
        is_lost: impl Fn(Instant) -> bool,
    ) -> u64 {
        let mut lost = 0_u64;
        let mut gone = Vec::new();
        for queue in self.queues.values_mut() {
            let before = queue.put_off.len();
            queue.put_off.retain(|sequence, put_off| {
                let is_gone = is_gone(*sequence);
                if is_gone {
                    gone.push(put_off.second);
                }
                !is_gone
            });
            self.put_off -= before - queue.put_off.len();
        }
        for second in gone {
            lost += u64::from(is_lost(self.at(second) + ack_wait));
        }
        let now = self.second(Instant::now());
        let mut asked = std::mem::take(&mut self.asked);
        asked.retain(|sequence, second| {
            let is_gone = is_gone(*sequence);
            // Since it was asked for, the broker may have given it to anybody.
            lost += u64::from(is_gone && is_lost(self.at(*second)));
            !is_gone && now.saturating_sub(*second) <= ASKED_SECONDS
        });
        self.asked = asked;
        lost
    }

    /// Takes up to `most` items of up to `bytes`, owner by owner in turn and line by line, of no line that is being worked on.
    /// One at least, if there is any. Once something is taken, a line that does not fit whole is begun only where half of
    /// the room is left: the rest of it would wait for little.
    pub(super) fn take(&mut self, most: usize, bytes: usize) -> Option<Taken<T>> {
        let mut taken = Taken { items: Vec::new(), lines: Vec::new() };
        let mut room = bytes;
        let mut again = Vec::new();
        while taken.items.len() < most
            && let Some(owner) = self.turns.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&owner) else { continue };
            queue.has_turn = false;
            let held = self.held.get(&owner);
            if queue.lanes >= self.lanes || matches!(held, Some(Some(_))) {
                // Fewer are allowed than when it was given its turn, or it is held since; it gets another after that.
                continue;
            }
            let is_alone = held.is_some();
            if is_alone && !taken.items.is_empty() {
                queue.has_turn = true;
                self.turns.push_front(owner);
                break;
            }
            let lines = taken.lines.len();
            let (first, stripes) = (queue.next, queue.lines.len());
            for stripe in Stripe::all().cycle().skip(first).take(stripes) {
                let Some(line) = queue.line(stripe) else { continue };
                let left = most - taken.items.len();
                let is_begun = taken.lines.len() == lines || line.items.len() <= left || left >= most / 2;
                if line.busy || !is_begun {
                    continue;
                }
                let (before, mut taken_bytes) = (taken.items.len(), 0);
                while taken.items.len() < most
                    && let Some((bytes, item)) =
                        line.items.pop_front_if(|(bytes, _)| *bytes <= room || taken.items.is_empty())
                {
                    room = room.saturating_sub(bytes);
                    taken_bytes += bytes;
                    taken.items.push(item);
                }
                let items = taken.items.len() - before;
                if items > 0 {
                    line.busy = true;
                    self.items -= items;
                    (queue.bytes, self.bytes) = (queue.bytes - taken_bytes, self.bytes - taken_bytes);
                    queue.next = (usize::from(stripe.number()) + 1) % stripes;
                    taken.lines.push((owner.clone(), stripe));
                }
            }
            if taken.lines.len() == lines {
                queue.has_turn = true;
                self.turns.push_front(owner);
                break;
            }
            queue.lanes += 1;
            again.push(owner);
            if is_alone {
                break;
            }
        }
        for owner in again {
            self.give_turn(owner);
        }
        (!taken.items.is_empty()).then_some(taken)
    }

    /// Lets others work on the lines that one lane took, whose owners stand at the end.
    pub(super) fn release(&mut self, mut lines: Vec<(Owner, Stripe)>) {
        for (owner, stripe) in &lines {
            if let Some(line) = self.queues.get_mut(owner).and_then(|queue| queue.line(*stripe)) {
                line.busy = false;
            }
        }
        // A lane takes all that it does of one owner together.
        lines.dedup_by(|(one, _), (other, _)| one == other);
        for (owner, _) in lines {
            if let Some(queue) = self.queues.get_mut(&owner) {
                queue.lanes = queue.lanes.saturating_sub(1);
            }
            self.give_turn(owner);
        }
    }

    /// All that waits, without what was put off.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let lines = self.queues.values().flat_map(|queue| &queue.lines);
        lines.flat_map(|line| line.items.iter().map(|(_, item)| item))
    }

    /// Empties the queues: what waited, and what was put off.
    pub(super) fn drain(&mut self) -> (Vec<T>, Vec<(u64, PutOff)>) {
        self.turns.clear();
        self.held.clear();
        (self.items, self.bytes, self.put_off) = (0, 0, 0);
        self.asked.clear();
        let (mut waited, mut put_off) = (Vec::new(), Vec::new());
        for (_, queue) in self.queues.drain() {
            waited.extend(queue.lines.into_iter().flat_map(|line| line.items).map(|(_, item)| item));
            put_off.extend(queue.put_off);
        }
        (waited, put_off)
    }

    /// Forgets owners of whom nothing waits, is worked on or was put off.
    pub(super) fn forget(&mut self) {
        self.queues.retain(|_, queue| queue.items() > 0 || queue.lanes > 0 || !queue.put_off.is_empty());
        self.held.retain(|owner, _| self.queues.contains_key(owner));
    }
}

/// How much more may wait of an owner where `all` waits, in items and bytes. An owner has room for half of what the others
/// leave, so that there is room for the next however many flood.
fn room<T>(all: (usize, usize), queue: Option<&Queue<T>>) -> (usize, usize) {
    let (items, bytes) = queue.map_or((0, 0), |queue| (queue.items(), queue.bytes));
    let others = (all.0.saturating_sub(items), all.1.saturating_sub(bytes));
    (
        (MAX_ITEMS.saturating_sub(others.0) / 2).saturating_sub(items),
        (MAX_BYTES.saturating_sub(others.1) / 2).saturating_sub(bytes),
    )
}

fn bytes_of(put_off: &PutOff) -> usize {
    usize::try_from(put_off.bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(number: usize) -> Owner {
        Some(GuildId::parse(number.to_string()).unwrap())
    }

    fn line(number: usize) -> (Owner, Stripe) {
        (owner(number), Stripe::default())
    }

    /// The first delivery of a small event.
    fn came(number: usize) -> Came {
        let sequence = u64::try_from(number).unwrap();
        Came { sequence, delivery: sequence, deliveries: 1, bytes: 100 }
    }

    /// Puts an event into its queue or puts it off; answers whether there was room.
    fn take_in(waiting: &mut Waiting<usize>, owner: Owner, came: Came) -> bool {
        let has_room = waiting.has_room(&owner, came);
        if has_room {
            waiting.put(owner, Stripe::default(), came, usize::try_from(came.sequence).unwrap());
        } else {
            waiting.put_off(owner, came);
        }
        has_room
    }

    fn flooded(events: usize) -> Waiting<usize> {
        let mut waiting = Waiting::new();
        for number in 0..events {
            take_in(&mut waiting, owner(1), came(number));
        }
        waiting
    }

    #[test]
    fn a_flood_leaves_half_of_the_room_and_the_next_half_of_that() {
        let mut waiting = flooded(20_000);
        assert_eq!(waiting.items, MAX_ITEMS / 2);
        assert_eq!(waiting.put_off, 20_000 - MAX_ITEMS / 2);
        let second = (0..).find(|number| !take_in(&mut waiting, owner(2), came(*number)));
        assert_eq!(second, Some(MAX_ITEMS / 4));
        assert!(take_in(&mut waiting, owner(3), came(0)));
        assert_eq!(waiting.iter().count(), MAX_ITEMS / 2 + MAX_ITEMS / 4 + 1);
    }

    #[test]
    fn bytes_are_bounded_as_items_are() {
        let mut waiting = Waiting::new();
        let large = |number| Came { bytes: 256 * 1024, ..came(number) };
        let refused = (0..).find(|number| !take_in(&mut waiting, owner(1), large(*number)));
        assert_eq!(refused, Some(MAX_BYTES / 2 / (256 * 1024)));
    }

    #[test]
    fn communities_take_turns_and_none_is_worked_on_twice_at_once() {
        let mut waiting = flooded(20_000);
        take_in(&mut waiting, owner(2), came(7));
        take_in(&mut waiting, owner(3), came(8));
        let first = waiting.take(500, MAX_BYTES).unwrap();
        assert_eq!((first.items.len(), &first.lines), (500, &vec![line(1)]));
        let second = waiting.take(500, MAX_BYTES).unwrap();
        assert_eq!((second.items, &second.lines), (vec![7, 8], &vec![line(2), line(3)]));
        assert!(waiting.take(500, MAX_BYTES).is_none(), "all are being worked on");
        take_in(&mut waiting, owner(2), came(9));
        waiting.release(first.lines);
        waiting.release(second.lines);
        let third = waiting.take(2, MAX_BYTES).unwrap();
        assert_eq!((third.items, third.lines), (vec![500, 501], vec![line(1)]));
        assert_eq!(waiting.take(500, MAX_BYTES).unwrap().items, [9]);
    }

    #[test]
    fn lanes_work_on_stripes_of_one_community_at_once_and_pass_over_none() {
        let [one, two, three, four] = Stripe::all().collect::<Vec<_>>().try_into().unwrap();
        let stripes = || {
            let mut waiting = Waiting::new();
            for (stripe, numbers) in
                [(one, 0..150), (two, 1000..1150), (three, 2000..2010), (four, 3000..3150)]
            {
                for number in numbers {
                    waiting.put(owner(1), stripe, came(number), number);
                }
            }
            waiting
        };
        let mut waiting = stripes();
        let first = waiting.take(10, MAX_BYTES).unwrap();
        assert!(waiting.take(10, MAX_BYTES).is_none(), "one lane is allowed");
        waiting.allow(2);
        let taken = [first, waiting.take(10, MAX_BYTES).unwrap()];
        assert!(waiting.take(10, MAX_BYTES).is_none(), "a lane is kept for others");
        waiting.put(owner(2), one, came(0), 7);
        let others = waiting.take(10, MAX_BYTES).unwrap();
        assert_eq!((others.items, others.lines), (vec![7], vec![(owner(2), one)]));
        for taken in taken {
            waiting.release(taken.lines);
        }
        let mut waiting = stripes();
        waiting.allow(3);
        let first = waiting.take(100, MAX_BYTES).unwrap();
        assert_eq!((first.items, &first.lines), ((0..100).collect(), &vec![(owner(1), one)]));
        let second = waiting.take(100, MAX_BYTES).unwrap();
        assert_eq!((second.items, &second.lines), ((1000..1100).collect(), &vec![(owner(1), two)]));
        let third = waiting.take(100, MAX_BYTES).unwrap();
        assert_eq!(third.items, (2000..2010).chain(3000..3090).collect::<Vec<_>>());
        assert_eq!(third.lines, [(owner(1), three), (owner(1), four)], "most of the batch was free");
        assert!(waiting.take(100, MAX_BYTES).is_none(), "all are being worked on");
        waiting.release(third.lines);
        waiting.release(first.lines);
        waiting.release(second.lines);
        let fourth = waiting.take(100, MAX_BYTES).unwrap();
        assert_eq!(fourth.items, (100..150).chain(1100..1150).collect::<Vec<_>>());
        assert_eq!(waiting.take(100, MAX_BYTES).unwrap().items, (3090..3150).collect::<Vec<_>>());
        assert_eq!((waiting.items, waiting.bytes), (0, 0));
        let mut waiting = stripes();
        waiting.allow(2);
        let first = waiting.take(100, MAX_BYTES).unwrap();
        waiting.allow(1);
        assert!(waiting.take(100, MAX_BYTES).is_none(), "fewer are allowed since");
        waiting.release(first.lines);
        assert!(waiting.take(100, MAX_BYTES).is_some());
    }

    #[test]
    fn a_batch_ends_at_its_bytes_but_has_one_item() {
        let mut waiting = flooded(3);
        let first = waiting.take(500, 250).unwrap();
        assert_eq!(first.items, [0, 1]);
        waiting.release(first.lines);
        assert_eq!(waiting.take(500, 1).unwrap().items, [2]);
    }

    #[test]
    fn what_was_put_off_is_asked_for_in_its_order_when_its_turn_comes() {
        let now = Instant::now();
        let mut waiting = flooded(30_000);
        assert_eq!(waiting.ask(now), [], "enough waits");
        waiting.take(MAX_ITEMS / 2 - 1000, usize::MAX).unwrap();
        let asked: Vec<u64> = waiting.ask(now).into_iter().map(|(sequence, _)| sequence).collect();
        let first = u64::try_from(MAX_ITEMS / 2).unwrap();
        assert_eq!(asked, (first..first + 3096).collect::<Vec<_>>());
        assert_eq!(waiting.ask(now), [], "it is on its way");
        assert!(!take_in(&mut waiting, owner(1), came(30_000)), "what is new stands behind it");
        for sequence in &asked {
            let again = Came { deliveries: 2, ..came(usize::try_from(*sequence).unwrap()) };
            assert!(take_in(&mut waiting, owner(1), again));
        }
        assert_eq!(waiting.ask(now), [], "it has come");
        waiting.release(vec![line(1)]);
        waiting.take(10, usize::MAX).unwrap();
        assert_eq!(waiting.ask(now).len(), 10);
        let elsewhere = waiting.ask(now + ASKED * 2);
        assert_eq!(elsewhere.len(), 10, "what did not come went to another replica");
    }

    #[test]
    fn what_comes_again_by_itself_is_remembered_once_and_all_of_it_up_to_a_bound() {
        let mut waiting = flooded(20_000);
        let known = waiting.put_off;
        let again = Came { delivery: 77_777, deliveries: 2, ..came(19_999) };
        let lines = &mut waiting.queues.get_mut(&owner(1)).unwrap().lines;
        lines[0].items.extend(vec![(0, 0); 20_000]);
        assert!(!take_in(&mut waiting, owner(1), again));
        assert_eq!(waiting.put_off, known);
        assert_eq!(waiting.drain().1.last().unwrap().1.delivery, 77_777);
        let mut waiting = flooded(MAX_PUT_OFF + 20_000);
        assert_eq!(waiting.put_off, MAX_PUT_OFF);
        assert_eq!(waiting.drain().1.len(), MAX_PUT_OFF);
        assert!(waiting.ask(Instant::now()).is_empty());
    }

    #[test]
    fn what_could_not_be_worked_on_waits_and_is_then_taken_alone() {
        let now = Instant::now();
        let mut waiting = Waiting::new();
        for number in 0..3 {
            for item in 0..2 {
                take_in(&mut waiting, owner(number), came(number * 10 + item));
            }
        }
        let first = waiting.take(2, MAX_BYTES).unwrap();
        assert_eq!(first.items, [0, 1]);
        let put_back = first.items.into_iter().map(|item| (Stripe::default(), 100, item)).collect();
        waiting.hold(owner(0), put_back, now + ASKED);
        waiting.release(first.lines);
        assert_eq!((waiting.items, waiting.bytes), (6, 600));
        assert!(!waiting.wake(now));
        let others = waiting.take(3, MAX_BYTES).unwrap();
        assert_eq!(others.items, [10, 11, 20], "the others go on");
        waiting.release(others.lines);
        assert!(waiting.wake(now + ASKED) && !waiting.wake(now + ASKED));
        assert_eq!(waiting.take(9, MAX_BYTES).unwrap().items, [21]);
        let alone = waiting.take(9, MAX_BYTES).unwrap();
        assert_eq!(alone.items, [0, 1], "in their order");
        take_in(&mut waiting, owner(1), came(12));
        waiting.release(alone.lines);
        take_in(&mut waiting, owner(0), came(2));
        waiting.trust(&owner(0));
        assert!(!waiting.holds_any());
        take_in(&mut waiting, owner(3), came(30));
        assert!(waiting.take(9, MAX_BYTES).unwrap().items.len() > 1, "with others again");
        waiting.hold(owner(4), Vec::new(), now);
        waiting.trust(&owner(4));
        assert!(waiting.holds_any(), "it failed since");
        waiting.forget();
        assert!(!waiting.holds_any());
    }

    #[test]
    fn an_owner_is_forgotten_when_nothing_of_it_is_left() {
        let mut waiting = flooded(MAX_ITEMS / 2 + 1);
        let taken = waiting.take(MAX_ITEMS, usize::MAX).unwrap();
        assert_eq!(waiting.ask(Instant::now()).len(), 1);
        waiting.forget();
        assert_eq!(waiting.queues.len(), 1, "it is being worked on");
        waiting.release(taken.lines);
        waiting.forget();
        assert!(waiting.queues.is_empty());
        let mut waiting = flooded(MAX_ITEMS / 2 + 1);
        let taken = waiting.take(MAX_ITEMS, usize::MAX).unwrap();
        waiting.release(taken.lines);
        waiting.forget();
        assert_eq!(waiting.queues.len(), 1, "some was put off");
    }
}
