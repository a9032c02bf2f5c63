//! Where changes may wait to be published, as far as this process knows.

use std::sync::atomic::{AtomicI32, AtomicU16, Ordering};

use muster_domain::Shard;
use tokio::sync::Notify;

/// Shards that were written to, and how far each was published last.
pub(crate) struct OutboxHints {
    /// The shards that this process wrote to since it was last asked, one bit each.
    written: AtomicU16,
    wake: Notify,
    /// For each shard, up to which community changes were last handed out.
    handed_out: Vec<AtomicI32>,
}

impl OutboxHints {
    /// Every shard may have something of an earlier process.
    pub(crate) fn new() -> Self {
        Self {
            written: AtomicU16::new(u16::MAX),
            wake: Notify::new(),
            handed_out: Shard::all().map(|_| AtomicI32::new(0)).collect(),
        }
    }

    /// Notes that a shard was written to.
    pub(crate) fn wrote(&self, shard: Shard) {
        self.written.fetch_or(bit(shard), Ordering::AcqRel);
        self.wake.notify_one();
    }

    /// Waits until some shards were written to, and returns them.
    pub(crate) async fn written(&self) -> Vec<Shard> {
        loop {
            let written = self.written.swap(0, Ordering::AcqRel);
            if written != 0 {
                return Shard::all().filter(|shard| written & bit(*shard) != 0).collect();
            }
            self.wake.notified().await;
        }
    }

    /// Up to which community of a shard changes were last handed out.
    pub(crate) fn handed_out(&self, shard: Shard) -> i32 {
        self.of(shard).map_or(0, |community| community.load(Ordering::Relaxed))
    }

    /// Notes up to which community of a shard changes were handed out.
    pub(crate) fn note_handed_out(&self, shard: Shard, community: i32) {
        if let Some(of) = self.of(shard) {
            of.store(community, Ordering::Relaxed);
        }
    }

    fn of(&self, shard: Shard) -> Option<&AtomicI32> {
        self.handed_out.get(usize::from(shard.number()))
    }
}

const fn bit(shard: Shard) -> u16 {
    1 << shard.number()
}
