//! Publishes the changes in the outbox: those of this process at once, and those that another left behind within a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::try_join_all;
use muster_domain::{Change, CommunityId, Shard};
use muster_messaging::changes::publisher::{ChangePublisher, ChangesBounds, ChangesError};
use muster_messaging::connection::{Connection, LinkState};
use muster_storage::{Publication, Store, UnreadableChange};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::chain::chain;
use crate::metrics;

/// How often every shard is searched for changes that other processes left.
const LOOK: Duration = Duration::from_secs(1);
/// The pause before the next try after a failure.
const PAUSE: Duration = Duration::from_secs(1);
/// How long one attempt may take, in the database and on the wire.
const ATTEMPT: Duration = Duration::from_secs(15);
/// How much of that publishing may take, before the rest is left to the next attempt.
const BUDGET: Duration = Duration::from_secs(5);
/// How often a failure that lasts is logged.
const REMINDER: Duration = Duration::from_mins(1);

/// The task that publishes.
pub(crate) struct Publishing {
    task: JoinHandle<()>,
    stop: Arc<Notify>,
}

impl Publishing {
    pub(crate) fn start(store: Store, connection: Connection) -> Self {
        let stop = Arc::new(Notify::new());
        let outbox =
            Outbox { store, connection, publisher: None, failing: None, unreadable: BTreeMap::new() };
        let task = tokio::spawn(outbox.run(Arc::clone(&stop)));
        Self { task, stop }
    }

    /// Publishes what this process has written last, and ends. Changes that are not published by the deadline wait for the next
    /// worker.
    pub(crate) async fn stop(mut self, deadline: Duration) {
        self.stop.notify_one();
        let _ = timeout(deadline, &mut self.task).await;
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why changes wait.
#[derive(Debug, thiserror::Error)]
enum NotPublished {
    #[error(transparent)]
    Database(#[from] muster_storage::Error),
    #[error(transparent)]
    Stream(#[from] ChangesError),
}

struct Outbox {
    store: Store,
    connection: Connection,
    publisher: Option<Arc<ChangePublisher>>,
    failing: Option<Failing>,
    /// Of each shard a change that cannot be read, and when that was logged last.
    unreadable: BTreeMap<Shard, (UnreadableChange, Instant)>,
}

/// Since when publishing fails, and when that was logged last.
struct Failing {
    since: Instant,
    logged: Instant,
}

/// The result of one attempt, beside the changes that it published.
#[derive(Default)]
struct Attempt {
    error: Option<NotPublished>,
    /// Communities of which the stream has later changes than the database, each with the stream's last number.
    behind: Vec<(CommunityId, u64)>,
}

impl Outbox {
    async fn run(mut self, stop: Arc<Notify>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (shards, last): (Vec<Shard>, bool) = tokio::select! {
                () = stop.notified() => (Shard::all().collect(), true),
                shards = self.store.changes_written() => (shards, false),
                _ = look.tick() => (Shard::all().collect(), false),
            };
            // What is sent without a connection waits in the client, and is counted as lost meanwhile.
            let connected = *self.connection.state().borrow() == LinkState::Connected;
            let published = if connected { self.publish(shards).await } else { Ok(()) };
            // Without a connection nothing was tried: what failed before is not over.
            if connected {
                self.note(&published);
            }
            self.look_again_at_unreadable().await;
            if last {
                return;
            }
            if published.is_err() {
                sleep(PAUSE).await;
            }
        }
    }

    async fn publish(&mut self, shards: Vec<Shard>) -> Result<(), NotPublished> {
        let publisher = match &self.publisher {
            Some(publisher) => Arc::clone(publisher),
            None => {
                let opened = ChangePublisher::open(&self.connection, &ChangesBounds::default()).await;
                Arc::clone(self.publisher.insert(Arc::new(opened?)))
            }
        };
        // By turns, so that no shard waits for what another has much of.
        let mut waiting = shards;
        let mut failed = Ok(());
        while !waiting.is_empty() {
            let mut more = Vec::new();
            for shard in waiting {
                let (publication, attempt) = match self.attempt(shard, &publisher).await {
                    Ok(attempted) => attempted,
                    // Other shards may lie where all is well.
                    Err(NotPublished::Database(error)) if error.may_be_of_a_node() => {
                        failed = failed.and(Err(error.into()));
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                metrics::changes_published(publication.published);
                if let Some(unreadable) = publication.unreadable {
                    self.note_unreadable(shard, unreadable);
                }
                if let Some(error) = attempt.error {
                    if publisher.is_gone().await {
                        self.publisher = None;
                    }
                    return Err(error);
                }
                for (community, published) in &attempt.behind {
                    tracing::warn!(
                        community.id = %community,
                        change.number = published,
                        "the stream has later changes than the database, as after a restore from a backup: numbers continue above \
                         them"
                    );
                    self.store.changes_skip(*community, *published).await?;
                }
                // Changes with new numbers wait for the next look.
                if publication.more {
                    more.push(shard);
                }
            }
            waiting = more;
        }
        failed
    }

    /// Publishes some of the changes that wait in a shard.
    async fn attempt(
        &self,
        shard: Shard,
        publisher: &Arc<ChangePublisher>,
    ) -> Result<(Publication, Attempt), NotPublished> {
        let (store, publisher) = (self.store.clone(), Arc::clone(publisher));
        let publish =
            move |changes: Vec<Change>| async move { publish(&store, &publisher, &changes).await }.boxed();
        let (publication, attempt) = self.store.changes_publish(shard, ATTEMPT, publish).await?;
        Ok((publication, attempt.unwrap_or_default()))
    }

    /// Logs a change that cannot be read when it is first seen.
    fn note_unreadable(&mut self, shard: Shard, change: UnreadableChange) {
        if self.unreadable.get(&shard).is_some_and(|(known, _)| *known == change) {
            return;
        }
        tracing::error!(
            community.id = %change.community,
            change.number = change.number,
            error = change.error,
            "a change cannot be read: it waits, with those of its community behind it, until its row is mended"
        );
        self.unreadable.insert(shard, (change, Instant::now()));
    }

    /// Logs now and then that such a change still waits, and when it does no longer.
    async fn look_again_at_unreadable(&mut self) {
        let now = Instant::now();
        let due = |logged: &Instant| now.duration_since(*logged) >= REMINDER;
        let due: Vec<Shard> =
            self.unreadable.iter().filter(|(_, (_, logged))| due(logged)).map(|(shard, _)| *shard).collect();
        for shard in due {
            let Some((change, logged)) = self.unreadable.get_mut(&shard) else { continue };
            *logged = now;
            let (community, number) = (change.community, change.number);
            match self.store.change_waiting(community, number).await {
                Ok(Some(_)) => {
                    let error = change.error.as_str();
                    tracing::error!(community.id = %community, change.number = number, error, "a change still cannot be read");
                }
                Ok(None) => {
                    tracing::info!(community.id = %community, change.number = number, "the change waits no longer");
                    self.unreadable.remove(&shard);
                }
                // The next look tells.
                Err(_) => {}
            }
        }
    }

    /// Logs when publishing begins to fail, now and then while it does, and when it works again.
    fn note(&mut self, published: &Result<(), NotPublished>) {
        let now = Instant::now();
        match (published, &mut self.failing) {
            (Ok(()), None) => {}
            (Ok(()), Some(failing)) => {
                let lasted = now.duration_since(failing.since);
                tracing::info!(lasted_ms = lasted.as_secs_f64() * 1000.0, "changes are published again");
                self.failing = None;
            }
            (Err(error), None) => {
                tracing::error!(error = chain(error), "changes are not published: they wait in the database");
                self.failing = Some(Failing { since: now, logged: now });
            }
            (Err(error), Some(failing)) => {
                if now.duration_since(failing.logged) >= REMINDER {
                    failing.logged = now;
                    tracing::error!(error = chain(error), "changes are still not published");
                }
            }
        }
    }
}

/// Publishes changes of a shard, and returns how many of them, counted from the first.
async fn publish(store: &Store, publisher: &ChangePublisher, changes: &[Change]) -> (usize, Attempt) {
    let behind = match behind(store, publisher, changes).await {
        Ok(behind) => behind,
        Err(error) => return (0, Attempt { error: Some(error), behind: Vec::new() }),
    };
    let is_behind = |change: &Change| behind.iter().any(|(community, _)| *community == change.community);
    let ready = changes.iter().position(is_behind).unwrap_or(changes.len());
    let published = publisher.publish(changes.get(..ready).unwrap_or_default(), BUDGET).await;
    (published.count, Attempt { error: published.error.map(NotPublished::from), behind })
}

/// The communities of which the stream has a change at or behind the first of these that is not one that waits, each with its number. All
/// are asked for at once: there are no more than one call of storage hands out.
async fn behind(
    store: &Store,
    publisher: &ChangePublisher,
    changes: &[Change],
) -> Result<Vec<(CommunityId, u64)>, NotPublished> {
    let looking = publisher.communities_to_check(changes).into_iter().map(async |(community, first)| {
        let last = publisher.last_of(community).await?;
        let Some((number, id)) = last.filter(|(number, _)| *number >= first) else {
            return Ok::<_, NotPublished>(None);
        };
        // One that was published and not yet removed is the same as the one that waits.
        let waiting = store.change_waiting(community, number).await?;
        Ok((waiting != Some(id)).then_some((community, number)))
    });
    Ok(try_join_all(looking).await?.into_iter().flatten().collect())
}
