use muster_messaging::connection::{ConnectionError, LinkFailure};
use muster_messaging::events::consumer::ConsumerError;
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
    #[error("not everything would work: see the report")]
    Check,
}

impl Failure {
    /// The process's exit code: 64 (EX_USAGE of sysexits.h) for a wrong configuration, else 1.
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) => 64,
            _ => 1,
        }
    }

    /// The message with its causes.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
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
}
