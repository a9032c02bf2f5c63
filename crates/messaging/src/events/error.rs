//! Why events are not read.

use std::time::Duration;

use super::fitness::Finding;

/// The error of a library.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why events are not read.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// A stream is not there and cannot be created, or does not answer.
    #[error("the stream {0} is not available: check that JetStream is enabled and that this user may use it")]
    Stream(String, #[source] Cause),
    /// The durable consumer cannot be created.
    #[error(
        "the consumer {0} is not available: if it exists with a different configuration, delete it, then start again; \
         otherwise check that this user may create it"
    )]
    Durable(String, #[source] Cause),
    /// A stream or the consumer can lose events, or does not take or deliver them.
    #[error("events can be lost: {}", list(.0))]
    Unfit(Vec<Finding>),
    /// The stream was deleted.
    #[error(
        "the stream EVENTS was deleted: events that were not applied are lost; restore it, then start again"
    )]
    StreamGone,
    /// The stream was deleted and created again.
    #[error(
        "the stream EVENTS was deleted and created again: events that were not applied are lost; start again to read the new \
         stream from its beginning"
    )]
    StreamReplaced,
    /// The durable consumer was deleted.
    #[error(
        "the durable consumer was deleted: start again, and the whole stream is read once more; events that were applied \
         have no second effect"
    )]
    DurableGone,
    /// A dead letter was not stored.
    #[error("the stream DEAD_LETTERS did not take a dead letter: check that it has room")]
    DeadLetter(#[source] Cause),
    /// The broker did not report the consumer's lag.
    #[error(
        "the broker did not report the consumer's lag: check that NATS answers, and that this user may ask for consumers and messages"
    )]
    Lag(#[source] Cause),
    /// Not everything was finished in time.
    #[error("events were still being applied after {0:?}: they are delivered again")]
    Unfinished(Duration),
    /// The consumer was stopped.
    #[error("the consumer was stopped")]
    Stopped,
    /// A task of the consumer panicked.
    #[error("a task of the consumer panicked: report it with the log")]
    Defect(#[source] Cause),
}

fn list(findings: &[Finding]) -> String {
    let each: Vec<String> = findings.iter().map(|finding| format!("{}: {finding}", finding.place)).collect();
    each.join("; ")
}
