use muster_messaging::client::ClientError;
use muster_messaging::connection::{ConnectionError, LinkFailure};
use muster_messaging::events::consumer::ConsumerError;
use muster_messaging::events::dead_letter::DeadLetterError;
use muster_messaging::replicas::ReplicaError;
use muster_messaging::service::{ServeError, StopError};

use crate::settings::SettingsError;

/// Why the worker ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Storage(#[from] muster_storage::Error),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Link(#[from] LinkFailure),
    #[error(transparent)]
    Consumer(#[from] ConsumerError),
    #[error(transparent)]
    Replicas(#[from] ReplicaError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Stop(#[from] StopError),
    #[error("the metrics cannot be started: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    #[error("the operating system refuses: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    DeadLetters(#[from] DeadLetterError),
    #[error("{failed} of {of} dead letters stay as they were")]
    DeadLettersLeft { failed: usize, of: usize },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the answer is an error")]
    Refused,
    #[error("not everything would work: see the report")]
    Check,
    #[error("{0} kept values drifted: repair them with `muster-worker verify --repair`")]
    Drifted(u64),
}

impl Failure {
    /// The process's exit code: 64 (EX_USAGE of sysexits.h) for a wrong configuration, 3 for counts that drifted,
    /// else 1.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) => 64,
            Self::Drifted(_) => 3,
            _ => 1,
        }
    }

    /// The message with its causes.
    pub(crate) fn chain(&self) -> String {
        chain(self)
    }
}

/// An error's message with those of its causes, each once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}
