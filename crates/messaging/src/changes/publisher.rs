//! Publishes changes to the stream `CHANGES`, each community's in their order.
//!
//! Many at once go as one atomic batch (NATS ADR-50), of which the stream stores all or none: a publisher that only sent them one
//! behind the other could have a later one stored and an earlier one refused. Where the stream takes no such batches, or has some of
//! them already, each is sent when the one before it is stored.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{HeaderMap, header};
use bytes::Bytes;
use muster_domain::{Change, ChangeId, CommunityId};
use uuid::Uuid;

use super::{CHANGES, CHANGES_SUBJECTS, fitness, subject, subjects, wire};
use crate::connection::Connection;
use crate::events::error::Cause;
use crate::events::fitness::{ADVISED_AGE, ADVISED_WINDOW, Finding, Place};
use crate::events::stream;
use crate::header::set_traceparent;

/// How long the stream may take to store what it is sent.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The most changes of one atomic batch: the server's own bound is 1000.
const MAX_BATCH: usize = 1000;
/// Of how many communities it is remembered which change was published last.
const MAX_REMEMBERED: usize = 100_000;

/// How large the stream may grow that is created here. At either bound it drops the oldest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangesBounds {
    /// The most bytes.
    pub bytes: i64,
    /// How long changes are kept.
    pub age: Duration,
    /// How many servers store the stream.
    pub replicas: usize,
}

impl Default for ChangesBounds {
    /// 1 GiB for 7 days, on one server.
    fn default() -> Self {
        Self { bytes: 1 << 30, age: ADVISED_AGE, replicas: 1 }
    }
}

/// The stream as it is created.
fn config(bounds: &ChangesBounds) -> Config {
    Config {
        name: CHANGES.to_owned(),
        description: Some("Changes of communities, for siblings of Muster".to_owned()),
        subjects: vec![CHANGES_SUBJECTS.to_owned()],
        max_bytes: bounds.bytes,
        max_age: bounds.age,
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        // It is for those who follow; the record is the database.
        discard: DiscardPolicy::Old,
        num_replicas: bounds.replicas,
        duplicate_window: ADVISED_WINDOW,
        allow_atomic_publish: true,
        ..Config::default()
    }
}

/// Judges the settings of the stream. Where it is missing, nothing is found but a stream that keeps it from being created.
///
/// # Errors
/// [`ChangesError::Stream`] when the server does not answer.
pub async fn inspect(connection: &Connection) -> Result<Vec<Finding>, ChangesError> {
    let context = jetstream::new(connection.client().clone());
    match stream::find(&context, CHANGES).await.map_err(|error| ChangesError::Stream(error.into()))? {
        Some(stream) => Ok(fitness::judge(&stream.cached_info().config)),
        None => Ok(stream::foreign(&context, Place::Changes, CHANGES_SUBJECTS).await.into_iter().collect()),
    }
}

/// Publishes changes.
#[derive(Debug)]
pub struct ChangePublisher {
    context: Context,
    client: async_nats::Client,
    stream: Stream,
    takes_batches: bool,
    last: Mutex<HashMap<CommunityId, u64>>,
    // It would outlive the one who looks after the link.
    _connection: Connection,
}

/// How far an attempt to publish came.
#[derive(Debug)]
pub struct PublishedChanges {
    /// How many of the changes, from the first, the stream has.
    pub count: usize,
    /// Why it has no more.
    pub error: Option<ChangesError>,
}

impl ChangePublisher {
    /// Opens the stream, and creates it where it is missing.
    ///
    /// # Errors
    /// [`ChangesError::Stream`] when it is neither there nor can be created.
    pub async fn open(connection: &Connection, bounds: &ChangesBounds) -> Result<Self, ChangesError> {
        let client = connection.client().clone();
        let mut context = jetstream::new(client.clone());
        context.set_timeout(TIMEOUT);
        let stream = stream::find_or_create(&context, Place::Changes, config(bounds)).await;
        let stream = stream.map_err(|error| ChangesError::Stream(error.into()))?;
        fitness::judge(&stream.cached_info().config).iter().for_each(Finding::warn);
        let takes_batches = stream.cached_info().config.allow_atomic_publish;
        let last = Mutex::default();
        Ok(Self { context, client, stream, takes_batches, last, _connection: connection.clone() })
    }

    /// Whether the stream was deleted. Another has to be opened then.
    pub async fn is_gone(&self) -> bool {
        matches!(stream::find(&self.context, CHANGES).await, Ok(None))
    }

    /// The communities whose last published change, as far as this publisher knows, is not the one before the first of `changes`,
    /// each with the number of that first change. Another worker published in between, or this one before a restart, or the database
    /// was restored from a backup.
    #[must_use]
    pub fn communities_to_check(&self, changes: &[Change]) -> BTreeMap<CommunityId, u64> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut firsts = BTreeMap::new();
        for change in changes {
            firsts.entry(change.community).or_insert(change.number);
        }
        firsts.retain(|community, first| last.get(community).copied() != first.checked_sub(1));
        firsts
    }

    /// The last change of a community that the stream has, by its number and id.
    ///
    /// # Errors
    /// [`ChangesError`] when the stream does not answer.
    pub async fn last_of(&self, community: CommunityId) -> Result<Option<(u64, ChangeId)>, ChangesError> {
        use async_nats::jetstream::stream::LastRawMessageErrorKind::NoMessageFound;

        let subjects = subjects(community);
        let asked = self.stream.get_last_raw_message_by_subject(&subjects);
        match tokio::time::timeout(TIMEOUT, asked).await {
            // What is not one of ours says nothing of our numbers.
            Ok(Ok(message)) => Ok(wire::decode(&message.payload).ok().map(|last| (last.number, last.id))),
            Ok(Err(error)) if matches!(error.kind(), NoMessageFound) => Ok(None),
            Ok(Err(error)) => Err(ChangesError::NotPublished(error.into())),
            Err(elapsed) => Err(ChangesError::NotPublished(elapsed.into())),
        }
    }

    /// Publishes changes, each community's in the order of their numbers. A change that the stream has already counts as published.
    ///
    /// Begins no more once `budget` is over: a slow broker is then given a part of them.
    pub async fn publish(&self, changes: &[Change], budget: Duration) -> PublishedChanges {
        let (mut count, end) = (0, Instant::now() + budget);
        for batch in changes.chunks(MAX_BATCH) {
            if Instant::now() > end {
                break;
            }
            let published = self.publish_batch(batch, end).await;
            self.remember(batch.get(..published.count).unwrap_or_default());
            count += published.count;
            if published.error.is_some() || published.count < batch.len() {
                return PublishedChanges { count, error: published.error };
            }
        }
        PublishedChanges { count, error: None }
    }

    async fn publish_batch(&self, changes: &[Change], end: Instant) -> PublishedChanges {
        if self.takes_batches && changes.len() > 1 {
            match self.publish_atomically(changes).await {
                Ok(()) => return PublishedChanges { count: changes.len(), error: None },
                Err(BatchError::NotTaken) => {}
                Err(BatchError::Failed(error)) => return PublishedChanges { count: 0, error: Some(error) },
            }
        }
        for (count, change) in changes.iter().enumerate() {
            if Instant::now() > end {
                return PublishedChanges { count, error: None };
            }
            if let Err(error) = self.publish_one(change).await {
                return PublishedChanges { count, error: Some(error) };
            }
        }
        PublishedChanges { count: changes.len(), error: None }
    }

    async fn publish_one(&self, change: &Change) -> Result<(), ChangesError> {
        let mut headers = headers(change);
        headers.insert(header::NATS_EXPECTED_STREAM, CHANGES);
        let subject = subject(change.community, change.change_type());
        let sent = self.context.publish_with_headers(subject, headers, payload(change)?).await;
        let sent = sent.map_err(|error| ChangesError::NotPublished(error.into()))?.await;
        sent.map(drop).map_err(|error| ChangesError::NotPublished(error.into()))
    }

    async fn publish_atomically(&self, changes: &[Change]) -> Result<(), BatchError> {
        let failed = |cause: Cause| BatchError::Failed(ChangesError::NotPublished(cause));
        let batch = Uuid::now_v7().to_string();
        let Some((last, others)) = changes.split_last() else { return Ok(()) };
        let headers_of = |change: &Change, sequence: usize| {
            let mut headers = headers(change);
            headers.insert(header::NATS_BATCH_ID, batch.as_str());
            headers.insert(header::NATS_BATCH_SEQUENCE, sequence.to_string().as_str());
            headers
        };
        for (change, sequence) in others.iter().zip(1_usize..) {
            let subject = subject(change.community, change.change_type());
            let payload = payload(change).map_err(BatchError::Failed)?;
            let sent = self.client.publish_with_headers(subject, headers_of(change, sequence), payload);
            sent.await.map_err(|error| failed(error.into()))?;
        }
        let mut headers = headers_of(last, changes.len());
        headers.insert(header::NATS_BATCH_COMMIT, header::NATS_BATCH_COMMIT_FINAL);
        let request = async_nats::Request::new()
            .headers(headers)
            .payload(payload(last).map_err(BatchError::Failed)?)
            .timeout(Some(TIMEOUT));
        let commit = self.client.send_request(subject(last.community, last.change_type()), request);
        let answer = tokio::time::timeout(TIMEOUT, commit).await.map_err(|elapsed| failed(elapsed.into()))?;
        let answer = answer.map_err(|error| failed(error.into()))?;
        let answer = serde_json::from_slice(&answer.payload).map_err(|error| failed(error.into()))?;
        match answer {
            Response::Ok(PublishAck { stream, .. }) if stream == CHANGES => Ok(()),
            Response::Ok(PublishAck { stream, .. }) => {
                Err(failed(format!("the stream {stream} stored them").into()))
            }
            // It has some of them, or it takes no batches at this time.
            Response::Err { error } if NOT_TAKEN.contains(&error.error_code()) => Err(BatchError::NotTaken),
            Response::Err { error } => Err(failed(error.into())),
        }
    }

    fn remember(&self, changes: &[Change]) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= MAX_REMEMBERED {
            last.clear();
        }
        last.extend(changes.iter().map(|change| (change.community, change.number)));
    }
}

/// What the server says where a batch cannot be stored at once, but its messages can one by one.
const NOT_TAKEN: [ErrorCode; 5] = [
    ErrorCode::ATOMIC_PUBLISH_DISABLED,
    ErrorCode::ATOMIC_PUBLISH_CONTAINS_DUPLICATE_MESSAGE,
    ErrorCode::ATOMIC_PUBLISH_TOO_LARGE_BATCH,
    ErrorCode::ATOMIC_PUBLISH_TOO_MANY_INFLIGHT,
    ErrorCode::ATOMIC_PUBLISH_UNSUPPORTED_HEADER,
];

enum BatchError {
    NotTaken,
    Failed(ChangesError),
}

fn headers(change: &Change) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_MESSAGE_ID, change.id.to_string().as_str());
    set_traceparent(&mut headers, change.traceparent.as_ref());
    headers
}

fn payload(change: &Change) -> Result<Bytes, ChangesError> {
    wire::encode(change).map(Bytes::from).map_err(|error| ChangesError::NotPublished(error.into()))
}

/// Why changes are not published.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The stream cannot be used.
    #[error(
        "the stream {CHANGES} is neither there nor can be created: check JetStream, and this user's permissions"
    )]
    Stream(#[source] Cause),
    /// It did not store what it was sent.
    #[error(
        "the stream {CHANGES} did not store a change: check that it exists and that NATS has room for it"
    )]
    NotPublished(#[source] Cause),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_created_on_three_servers_has_no_problem() {
        let three = ChangesBounds { replicas: 3, ..ChangesBounds::default() };
        let findings = fitness::judge(&config(&three));
        assert!(findings.iter().all(|finding| finding.problem().is_none()), "{findings:?}");
    }
}
