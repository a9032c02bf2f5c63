//! Publishes the changes in the outbox: those of this process at once, and those that another left behind within a second.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use muster_domain::{Change, CommunityId, Shard};
use muster_messaging::changes::publisher::{ChangePublisher, ChangesBounds, ChangesError};
use muster_messaging::connection::{Connection, LinkState};
use muster_storage::{Publication, Store};
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
        let outbox = Outbox { store, connection, publisher: None, failing: None };
        let task = tokio::spawn(outbox.run(Arc::clone(&stop)));
        Self { task, stop }
    }

    /// Publishes what this process has written last, and ends.
    pub(crate) async fn stop(mut self, deadline: Duration) {
        self.stop.notify_one();
        // What is not published by then waits for the next worker.
        if timeout(deadline, &mut self.task).await.is_err() {
            self.task.abort();
        }
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
}

/// Since when publishing fails, and when that was logged last.
struct Failing {
    since: Instant,
    logged: Instant,
}

/// The result of one attempt, beside the changes that it published.
#[derive(Default)]
struct Attempt {
    error: Option<ChangesError>,
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
            self.note(&published);
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
        while !waiting.is_empty() {
            let mut more = Vec::new();
            for shard in waiting {
                let (publication, attempt) = self.attempt(shard, &publisher).await?;
                metrics::changes_published(publication.published);
                if let Some(error) = attempt.error {
                    return Err(error.into());
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
        Ok(())
    }

    /// Publishes some of the changes that wait in a shard.
    async fn attempt(
        &self,
        shard: Shard,
        publisher: &Arc<ChangePublisher>,
    ) -> Result<(Publication, Attempt), NotPublished> {
        let (result, attempted) = tokio::sync::oneshot::channel();
        let (store, publisher) = (self.store.clone(), Arc::clone(publisher));
        let publication = self
            .store
            .changes_publish(shard, ATTEMPT, move |changes| {
                async move {
                    let (count, attempt) = publish(&store, &publisher, &changes).await;
                    // Nobody waits for it where the attempt is over.
                    let _ = result.send(attempt);
                    count
                }
                .boxed()
            })
            .await?;
        Ok((publication, attempted.await.unwrap_or_default()))
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
    let mut attempt = Attempt::default();
    for (community, first) in publisher.unsure_of(changes) {
        let published = match publisher.last_of(community).await {
            Ok(published) => published,
            Err(error) => return (0, Attempt { error: Some(error), ..attempt }),
        };
        let Some((number, id)) = published.filter(|(number, _)| *number >= first) else { continue };
        // One that was published and not yet forgotten is the same as the one that waits.
        match store.change_waiting(community, number).await {
            Ok(waiting) if waiting == Some(id) => {}
            Ok(_) => attempt.behind.push((community, number)),
            // It is looked up again with the next attempt.
            Err(_) => return (0, attempt),
        }
    }
    let is_behind =
        |change: &Change| attempt.behind.iter().any(|(community, _)| *community == change.community);
    let ready = changes.iter().position(is_behind).unwrap_or(changes.len());
    let published = publisher.publish(changes.get(..ready).unwrap_or_default(), BUDGET).await;
    (published.count, Attempt { error: published.error, ..attempt })
}
