//! Broadcasts among replicas of the worker: each keeps rate limits of its own, and all of them are cleared.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use muster_domain::CommunityId;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::api::Caller;
use crate::connection::Connection;

/// The subject of messages among replicas. Only the worker's user may publish and subscribe there.
pub const SUBJECT: &str = "muster.replicas.v1.ratelimit.clear";
/// How long replicas may take to answer. A slower one clears its limits all the same.
const ANSWERS: Duration = Duration::from_millis(250);
/// The most replicas whose answers are counted.
const MAX_REPLICAS: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
struct Clear {
    community_id: CommunityId,
    caller: Option<String>,
}

/// Listens to the other replicas until it is dropped.
#[derive(Debug)]
pub struct Subscription(JoinHandle<()>);

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Calls `clear` whenever any replica asks. It clears this replica's rate limits, and returns the number of counters.
///
/// # Errors
/// [`ReplicaError`] when the subject cannot be subscribed to.
pub async fn listen<C>(connection: &Connection, clear: C) -> Result<Subscription, ReplicaError>
where
    C: Fn(CommunityId, Option<&Caller>) -> u64 + Send + Sync + 'static,
{
    let client = connection.client().clone();
    let mut told = client.subscribe(SUBJECT).await.map_err(|error| ReplicaError(error.into()))?;
    let clear = Arc::new(clear);
    Ok(Subscription(tokio::spawn(async move {
        while let Some(message) = told.next().await {
            let Ok(Clear { community_id, caller }) = serde_json::from_slice(&message.payload) else {
                continue;
            };
            let Ok(caller) = caller.map(Caller::parse).transpose() else { continue };
            let cleared = clear(community_id, caller.as_ref());
            if let Some(reply) = message.reply {
                // The other replica adds up the answers that arrive, and does not need all of them.
                let _ = client.publish(reply, cleared.to_string().into()).await;
            }
        }
    })))
}

/// Makes every replica that listens, including this one, clear a caller's counter, or with `None` those of the whole
/// community. Returns the number of counters that they reported within a quarter of a second.
///
/// # Errors
/// [`ReplicaError`] when they cannot be told.
pub async fn clear_everywhere(
    connection: &Connection,
    community_id: CommunityId,
    caller: Option<&Caller>,
) -> Result<u64, ReplicaError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| ReplicaError(error);
    let client = connection.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| failed(error.into()))?;
    let clear = Clear { community_id, caller: caller.map(|caller| caller.as_str().to_owned()) };
    let payload = serde_json::to_vec(&clear).map_err(|error| failed(error.into()))?;
    client.publish_with_reply(SUBJECT, inbox, payload.into()).await.map_err(|error| failed(error.into()))?;
    let mut cleared = 0_u64;
    let counting = async {
        for _ in 0..MAX_REPLICAS {
            let Some(answer) = answers.next().await else { return };
            let text = std::str::from_utf8(&answer.payload).unwrap_or_default();
            cleared = cleared.saturating_add(text.parse().unwrap_or(0));
        }
    };
    // The time is up when all have answered: how many there are is not known.
    let _ = tokio::time::timeout(ANSWERS, counting).await;
    Ok(cleared)
}

/// The replicas could not be told.
#[derive(Debug, thiserror::Error)]
#[error(
    "the other replicas could not be told: check that this user may publish and subscribe to muster.replicas.>"
)]
pub struct ReplicaError(#[source] Box<dyn std::error::Error + Send + Sync>);
