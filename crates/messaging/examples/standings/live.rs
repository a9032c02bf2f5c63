//! Live updates: one follower of the community's changes, and one stream of events for each open page.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use futures_util::stream::{Stream, unfold};
use muster_messaging::CommunityClient;
use muster_messaging::changes::follower::{Changes, FollowError};
use muster_messaging::domain::{Change, ChangeData, Changed, Disappearance};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::time::{sleep, timeout};

/// How many open pages get updates at once. Others are current when they are loaded.
const MAX_WATCHERS: usize = 256;
/// How many updates a page may be behind before it is reloaded instead.
const BACKLOG: usize = 64;
/// How often a page is reloaded without an update: scores move within a tier, too. It also finds connections that are gone.
const LOOK: Duration = Duration::from_secs(15);
/// How long to wait before following is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// The updates of every open page.
#[derive(Clone)]
pub(crate) struct Live {
    updates: Sender<Arc<str>>,
    slots: Arc<Semaphore>,
    sent: Arc<AtomicU64>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self {
            updates: broadcast::channel(BACKLOG).0,
            slots: Arc::new(Semaphore::new(MAX_WATCHERS)),
            sent: Arc::default(),
        }
    }

    /// How many updates were sent. What was read before the last one may be old.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Acquire)
    }

    fn send(&self, update: &Value) {
        self.sent.fetch_add(1, Ordering::AcqRel);
        // Nobody may be watching.
        let _ = self.updates.send(update.to_string().into());
    }

    /// The updates for one open page; `None` where too many are open.
    pub(crate) fn watch(&self) -> Option<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(Sse::new(unfold((self.updates.subscribe(), slot), next)))
    }
}

/// The next event of a page's stream. Its data is JSON, in which a line break of a name cannot end the line.
async fn next(
    (mut updates, slot): (Receiver<Arc<str>>, OwnedSemaphorePermit),
) -> Option<(Result<Event, Infallible>, (Receiver<Arc<str>>, OwnedSemaphorePermit))> {
    let data = match timeout(LOOK, updates.recv()).await {
        Ok(Ok(data)) => data,
        Ok(Err(RecvError::Closed)) => return None,
        Ok(Err(RecvError::Lagged(_))) | Err(_) => Arc::from("{}"),
    };
    Some((Ok(Event::default().data(&*data)), (updates, slot)))
}

/// Follows a community's changes and sends an update of each after `last`, until the link to NATS is given up.
pub(crate) async fn follow(
    community: CommunityClient,
    durable: String,
    last: u64,
    live: Live,
) -> FollowError {
    loop {
        let ended = match community.changes(&durable).await {
            Ok(changes) => send_all(changes, last, &live).await,
            Err(error) => error,
        };
        if let FollowError::Link(_) = ended {
            return ended;
        }
        eprintln!("changes are not followed, and it is tried again in {PAUSE:?}: {ended}");
        sleep(PAUSE).await;
        live.send(&json!({}));
    }
}

async fn send_all(mut changes: Changes, last: u64, live: &Live) -> FollowError {
    loop {
        let acknowledged = match changes.next().await {
            Ok(delivered) => {
                // Earlier ones are in what every page is loaded with.
                if delivered.change.number > last {
                    live.send(&update(&delivered.change));
                }
                delivered.ack().await
            }
            Err(FollowError::Unreadable(unreadable)) => {
                live.send(&json!({}));
                unreadable.skip().await
            }
            Err(error) => return error,
        };
        if let Err(error) = acknowledged {
            // It is delivered again, and a second update does no harm.
            eprintln!("{error}");
        }
    }
}

/// A change as an update: the profile, and words that follow the name that the page shows.
fn update(change: &Change) -> Value {
    let Changed::Member { profile, data, .. } = &change.what else { return json!({}) };
    let words = match data {
        ChangeData::TierPromoted { to: Some(tier), .. } => format!("rises to {tier}"),
        ChangeData::TierDemoted { to: Some(tier), .. } => format!("is now {tier}"),
        ChangeData::TierPromoted { to: None, .. } | ChangeData::TierDemoted { to: None, .. } => {
            "has no tier now".to_owned()
        }
        ChangeData::BadgeAwarded(badge) => format!("gets the badge {}", badge.kind),
        ChangeData::BadgeRevoked(badge) => format!("gives back the badge {}", badge.kind),
        ChangeData::Appeared { .. } => "is new here".to_owned(),
        ChangeData::Renamed { .. } => "is the new name".to_owned(),
        // Who asked to be forgotten is not talked about.
        ChangeData::Disappeared(Disappearance::Erased) => return json!({}),
        ChangeData::Disappeared(_) => "is not in the standings any more".to_owned(),
    };
    json!({"profile": profile, "words": words})
}
