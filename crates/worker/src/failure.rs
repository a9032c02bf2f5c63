use std::net::SocketAddr;

use muster_messaging::client::ClientError;
use muster_messaging::connection::{ConnectionError, LinkFailure};
use muster_messaging::events::consumer::ConsumerError;
use muster_messaging::events::dead_letter::DeadLetterError;
use muster_messaging::replicas::ReplicaError;
use muster_messaging::service::{ServeError, StopError};

use crate::chain::chain;
use crate::command::erasure_list::ListError;
use crate::descriptors;
use crate::settings::SettingsError;
use crate::signals::Received;

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
    Erasures(#[from] ListError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the service answered an error, printed above")]
    Refused,
    #[error("not everything would work: see the report")]
    Check,
    #[error("{address} cannot be listened on, as http.address (MUSTER__HTTP__ADDRESS) says: {cause}")]
    Listen { address: SocketAddr, cause: std::io::Error },
    #[error("{}", .0.iter().map(Failure::chain).collect::<Vec<_>>().join("; "))]
    Missing(Vec<Failure>),
    #[error("gave up after {seconds} s: {}", .failure.chain())]
    Waited { seconds: u64, failure: Box<Failure> },
    #[error("ended by {0}")]
    Signal(Received),
    #[error("{0}")]
    TooOld(String),
    #[error("{0} kept values drifted: repair them with `muster-worker verify --repair`")]
    Drifted(u64),
}

/// How long a start waits for a failure to pass. See [`crate::start`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Patience {
    /// Waiting mends nothing.
    None,
    /// A server is there and refuses, which is more often a mistake than a matter of order.
    Short,
    /// Somebody else is about to mend it: a server that starts, a schema that is applied.
    Whole,
}

impl Failure {
    /// How long to wait for it to pass at a start.
    pub(crate) fn patience(&self) -> Patience {
        use muster_storage::Error as Storage;
        match self {
            Self::Storage(error) if error.is_refusal() => Patience::Short,
            // The database is made and its schema applied by others, in whatever order.
            Self::Storage(Storage::Unavailable(_) | Storage::Outdated(_)) => Patience::Whole,
            // Permissions on tables are given a moment after the tables are made.
            Self::Storage(Storage::Defect(_)) => Patience::Short,
            Self::Connection(error) => match error {
                ConnectionError::Unreachable(_) | ConnectionError::TimedOut(_) | ConnectionError::Closed => {
                    Patience::Whole
                }
                ConnectionError::Refused(_) | ConnectionError::Tls(_) | ConnectionError::Failed(_) => {
                    Patience::Short
                }
                _ => Patience::None,
            },
            // Settings are what somebody chose, and are mended before the next start.
            Self::Consumer(ConsumerError::Unfit(_)) => Patience::None,
            // A cluster of servers takes connections before JetStream has a leader.
            Self::Consumer(_) | Self::Replicas(_) | Self::Serve(_) | Self::DeadLetters(_) => Patience::Whole,
            Self::Missing(failures) => failures.iter().map(Self::patience).min().unwrap_or(Patience::None),
            _ => Patience::None,
        }
    }

    /// Whether it ends a start that has been waiting. A configuration that has become wrong is being changed, and does not.
    pub(crate) fn is_final(&self) -> bool {
        self.patience() == Patience::None && !matches!(self, Self::Settings(_))
    }

    /// The process's exit code: 64 (EX_USAGE of sysexits.h) for a wrong configuration, 3 for counts that drifted, 128 and its
    /// number for a signal, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) => 64,
            Self::Drifted(_) => 3,
            // That somebody else listens there may pass; an address that is not this machine's does not.
            Self::Listen { cause, .. } if cause.kind() != std::io::ErrorKind::AddrInUse => 64,
            Self::Signal(received) => received.exit_code(),
            _ => 1,
        }
    }

    /// The message with its causes.
    pub(crate) fn chain(&self) -> String {
        let mut text = chain(self);
        if descriptors::is_behind(self) && !text.starts_with(descriptors::USED_UP) {
            text.insert_str(0, ": ");
            text.insert_str(0, descriptors::USED_UP);
        }
        text
    }
}
