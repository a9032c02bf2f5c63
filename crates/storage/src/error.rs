use diesel::result::{DatabaseErrorKind, Error as DieselError};
use muster_domain::{CursorError, PolicyError};

/// Why storage could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database URL or its TLS settings are not usable.
    #[error("the database configuration is not usable: {0}")]
    Configuration(String),
    /// There is no such community, profile or badge, or it is not visible.
    #[error("no such {0}")]
    NotFound(Missing),
    /// The cursor is not of this list.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// The tier policy breaks a rule.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A wallet that another profile of the community has linked.
    #[error("the wallet is linked to another profile of this community: unlink it there first")]
    WalletTaken,
    /// The database is out of reach, too slow, full or read-only. Reads are safe to repeat; so are events, since an
    /// event's id decides whether it was applied.
    #[error("the database is unavailable: {0}")]
    Unavailable(#[source] Cause),
    /// The schema is not the one this version needs.
    #[error("the schema is not up to date: {0} migrations are pending; run `muster-worker migrate`")]
    Outdated(usize),
    /// A migration failed; it was rolled back.
    #[error("a migration failed and was rolled back: {0}")]
    Migration(#[source] Cause),
    /// A defect in Muster: a statement or row that should not have been possible.
    #[error("storage met a defect: {0}")]
    Defect(#[source] Cause),
}

/// The driver's error, kept for the log; its type is not part of this crate's interface.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// What was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A community.
    Community,
    /// A profile.
    Profile,
    /// A badge.
    Badge,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Community => "community",
            Self::Profile => "profile",
            Self::Badge => "badge",
        })
    }
}

impl Error {
    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    pub(crate) fn defect(what: impl Into<Cause>) -> Self {
        Self::Defect(what.into())
    }
}

/// Whether the connection was lost, whatever was asked of it.
pub(crate) fn is_cut_off(error: &DieselError) -> bool {
    match error {
        DieselError::DatabaseError(kind, info) => match kind {
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => true,
            DatabaseErrorKind::Unknown => info.message().contains("terminating connection"),
            _ => false,
        },
        _ => false,
    }
}

/// What PostgreSQL says when it is the server and not the statement that fails (its error classes 08, 25, 40, 53, 54,
/// 55, 57 and 58). The driver above hands on the message but not the code; the session asks for English messages.
const SERVER_FAILS: [&str; 21] = [
    "terminating connection",
    "the database system is",
    "canceling statement",
    "deadlock detected",
    "could not serialize",
    "too many connections",
    "sorry, too many clients",
    "remaining connection slots",
    "out of memory",
    "out of shared memory",
    "No space left on device",
    "could not extend file",
    "could not write",
    "could not fsync",
    "could not open file",
    "cannot execute",
    "connection",
    "server closed",
    "configuration_limit_exceeded",
    "disk full",
    "transaction timeout",
];

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        let transient = match &error {
            DieselError::DatabaseError(kind, info) => match kind {
                DatabaseErrorKind::SerializationFailure
                | DatabaseErrorKind::ReadOnlyTransaction
                | DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand => true,
                DatabaseErrorKind::Unknown => SERVER_FAILS.iter().any(|said| info.message().contains(said)),
                _ => false,
            },
            DieselError::BrokenTransactionManager | DieselError::RollbackErrorOnCommit { .. } => true,
            _ => false,
        };
        if transient { Self::Unavailable(error.into()) } else { Self::Defect(error.into()) }
    }
}
