//! The queue that the reader fills and the lanes empty.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::jetstream::Message;
use muster_domain::{GuildId, Stripe};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::delivery::{Delivery, Item, TakenEvent, bytes_of};
use super::queue::{FairQueue, Taken};
use super::ready::Owner;

/// The most bytes of a batch.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// A [`FairQueue`] that the reader and all lanes share.
pub(super) struct SharedQueue {
    queue: Mutex<FairQueue<Item>>,
    /// Notified when something can be taken that could not be before.
    ready: Notify,
    /// How many lanes may work on one community at once while the reader keeps up with the stream.
    lanes_per_community: usize,
    /// How many lanes wait for the store. Meanwhile nothing is read: all of it would be deferred, again and again.
    stalled: AtomicUsize,
}

/// A batch. Until it is dropped, no other lane works on its stripes of its communities.
pub(super) struct Batch<'a> {
    pub(super) items: Vec<Item>,
    stripes: Vec<(Owner, Stripe)>,
    queue: &'a SharedQueue,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.queue.lock().release(std::mem::take(&mut self.stripes));
        self.queue.notify();
    }
}

/// Until it is dropped, nothing is read.
pub(super) struct Stall<'a>(&'a SharedQueue);

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.0.stalled.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SharedQueue {
    /// For so many lanes. No community gets all of them, unless there is only one.
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            queue: Mutex::new(FairQueue::new()),
            ready: Notify::new(),
            lanes_per_community: lanes.saturating_sub(1).max(1),
            stalled: AtomicUsize::new(0),
        }
    }

    /// While the reader is behind, each community has one lane: the less a flood occupies the database and the broker, the
    /// sooner the reader reaches what is behind it.
    pub(super) fn set_behind(&self, is_behind: bool) {
        self.lock().set_lanes(if is_behind { 1 } else { self.lanes_per_community });
    }

    /// Waits for a batch of up to `max_items`.
    pub(super) async fn take_batch(&self, max_items: usize) -> Batch<'_> {
        loop {
            let ready = self.ready.notified();
            tokio::pin!(ready);
            ready.as_mut().enable();
            let taken = self.lock().take(max_items, BATCH_BYTES);
            if let Some(Taken { items, stripes }) = taken {
                return Batch { items, stripes, queue: self };
            }
            ready.await;
        }
    }

    /// Puts back events of a community whose rows are at fault. None of its events is taken until the time has come. Of those that it
    /// may not keep meanwhile it remembers the numbers of which `can_defer` says that they can be asked for again; the broker
    /// delivers the others after its wait.
    pub(super) fn pause(
        &self,
        guild: &GuildId,
        events: Vec<TakenEvent>,
        until: Instant,
        can_defer: impl Fn(&Message) -> bool,
    ) {
        let items = events.into_iter().map(Item::Event);
        let items = items.map(|item| (item.stripe(), bytes_of(item.message()), item)).collect();
        let mut queue = self.lock();
        for item in queue.pause(Some(guild.clone()), items, until) {
            let message = item.message();
            if let Some(delivery) = Delivery::of(message).filter(|_| can_defer(message)) {
                queue.defer_queued(Some(guild.clone()), delivery);
            }
        }
    }

    /// Ends the pauses that are over.
    pub(super) fn resume_due(&self) {
        if self.lock().resume_due(Instant::now()) {
            self.notify();
        }
    }

    /// Events of these communities were applied.
    pub(super) fn recovered<'a>(&self, guilds: impl IntoIterator<Item = &'a GuildId>) {
        let mut queue = self.lock();
        if queue.has_paused() {
            for guild in guilds {
                queue.recovered(&Some(guild.clone()));
            }
        }
    }

    /// Stops reading for as long as a lane waits for the store.
    pub(super) fn stall(&self) -> Stall<'_> {
        self.stalled.fetch_add(1, Ordering::Relaxed);
        Stall(self)
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed) > 0
    }

    /// Every message in the queue, without deferred ones.
    pub(super) fn messages(&self) -> Vec<Arc<Message>> {
        let mut queue = self.lock();
        queue.remove_idle();
        queue.iter().map(|item| Arc::clone(item.message())).collect()
    }

    /// Lets waiting lanes look again.
    pub(super) fn notify(&self) {
        self.ready.notify_waiters();
    }

    // A panic with the lock held leaves the queue consistent.
    pub(super) fn lock(&self) -> MutexGuard<'_, FairQueue<Item>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
