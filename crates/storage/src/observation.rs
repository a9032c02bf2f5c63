//! Observations of queries, for metrics.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;

/// What one query came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryObservation {
    /// The name of the method that asks it. There are a few dozen.
    pub query: &'static str,
    /// From its connection to its answer, or to a write's commit. `None` where it had no connection.
    pub took: Option<Duration>,
    /// Why it has no answer.
    pub failure: Option<QueryFailure>,
}

/// Gets every [`QueryObservation`]; it must not block.
pub type ObserveQuery = Arc<dyn Fn(&QueryObservation) + Send + Sync>;

/// Why a query has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryFailure {
    /// There was no connection for it in time.
    NoConnection,
    /// The database was out of reach, too slow, full or read-only.
    Unavailable,
    /// A defect.
    Defect,
}

impl QueryFailure {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::NoConnection, Self::Unavailable, Self::Defect];

    /// One word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoConnection => "no_connection",
            Self::Unavailable => "unavailable",
            Self::Defect => "defect",
        }
    }

    /// An answer such as that there is no such profile is none, nor is what is written again at once.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        match error {
            error if error.is_there_already() => None,
            Error::Unavailable(_) => Some(Self::Unavailable),
            Error::Defect(_) => Some(Self::Defect),
            _ => None,
        }
    }
}
