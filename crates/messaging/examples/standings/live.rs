//! What happens, told to those who watch: one follower of the changes, and for each open page one stream of events.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::response::sse::{Event, Sse};
use futures_util::stream::{Stream, unfold};
use muster_messaging::CommunityClient;
use muster_messaging::changes::follower::{Changes, FollowError};
use muster_messaging::domain::{Change, Changed, Disappearance, MemberNews};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::broadcast::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::time::{sleep, timeout};

/// How many open pages are told of changes at once. Others are current when they are loaded.
const MAX_WATCHERS: usize = 256;
/// How many changes a page may be behind before it is told to look anew instead.
const BACKLOG: usize = 64;
/// How often a page looks anew where nothing is told: scores move within a tier, too. It also shows who is gone.
const LOOK: Duration = Duration::from_secs(15);
/// How long to wait before following is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// What is told to every open page.
#[derive(Clone)]
pub(crate) struct Live {
    told: Sender<Arc<str>>,
    places: Arc<Semaphore>,
    heard: Arc<AtomicU64>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self {
            told: broadcast::channel(BACKLOG).0,
            places: Arc::new(Semaphore::new(MAX_WATCHERS)),
            heard: Arc::default(),
        }
    }

    /// How much was told so far. What was read before it grew may be old.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    fn tell(&self, told: &Value) {
        self.heard.fetch_add(1, Ordering::AcqRel);
        // Nobody may be watching.
        let _ = self.told.send(told.to_string().into());
    }

    /// What one open page is told; `None` where too many are open.
    pub(crate) fn watch(&self) -> Option<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Sse::new(unfold((self.told.subscribe(), place), next)))
    }
}

/// The next event of a page's stream. Its data is JSON, in which a line break of a name cannot end the line.
async fn next(
    (mut told, place): (Receiver<Arc<str>>, OwnedSemaphorePermit),
) -> Option<(Result<Event, Infallible>, (Receiver<Arc<str>>, OwnedSemaphorePermit))> {
    let data = match timeout(LOOK, told.recv()).await {
        Ok(Ok(data)) => data,
        Ok(Err(RecvError::Closed)) => return None,
        Ok(Err(RecvError::Lagged(_))) | Err(_) => Arc::from("{}"),
    };
    Some((Ok(Event::default().data(&*data)), (told, place)))
}

/// Follows a community's changes and tells of those after `last`. It ends with the process.
pub(crate) async fn follow(community: CommunityClient, durable: String, last: u64, live: Live) {
    loop {
        let ended = match community.changes(&durable).await {
            Ok(changes) => tell_all(changes, last, &live).await,
            Err(error) => error,
        };
        eprintln!("changes are not followed, and it is tried again in {PAUSE:?}: {ended}");
        sleep(PAUSE).await;
        live.tell(&json!({}));
    }
}

async fn tell_all(mut changes: Changes, last: u64, live: &Live) -> FollowError {
    loop {
        let acknowledged = match changes.next().await {
            Ok(told) => {
                // Earlier ones are in what every page is loaded with.
                if told.change.number > last {
                    live.tell(&said(&told.change));
                }
                told.ack().await
            }
            Err(FollowError::Unreadable(unreadable)) => {
                live.tell(&json!({}));
                unreadable.skip().await
            }
            Err(error) => return error,
        };
        if let Err(error) = acknowledged {
            // It comes again, and to tell a page of it twice does no harm.
            eprintln!("{error}");
        }
    }
}

/// What a page is told of a change: whose it is, and words to say behind the name that the page shows.
fn said(change: &Change) -> Value {
    let Changed::Member { profile, news, .. } = &change.what else { return json!({}) };
    let words = match news {
        MemberNews::TierPromoted { to: Some(tier), .. } => format!("rises to {tier}"),
        MemberNews::TierDemoted { to: Some(tier), .. } => format!("is now {tier}"),
        MemberNews::TierPromoted { to: None, .. } | MemberNews::TierDemoted { to: None, .. } => {
            "has no tier now".to_owned()
        }
        MemberNews::BadgeAwarded(badge) => format!("gets the badge {}", badge.kind),
        MemberNews::BadgeRevoked(badge) => format!("gives back the badge {}", badge.kind),
        MemberNews::Appeared { .. } => "is new here".to_owned(),
        MemberNews::Renamed { .. } => "is the new name".to_owned(),
        // Who asked to be forgotten is not talked about.
        MemberNews::Disappeared(Disappearance::Erased) => return json!({}),
        MemberNews::Disappeared(_) => "is not in the standings any more".to_owned(),
    };
    json!({"profile": profile, "words": words})
}
