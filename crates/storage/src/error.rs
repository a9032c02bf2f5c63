use diesel::result::{DatabaseErrorKind, Error as DieselError};
use muster_domain::{CursorError, PolicyError};
use tokio::time::error::Elapsed;

use crate::sql::sqlstate;

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
    /// A migration failed; it was rolled back, or is begun anew the next time.
    #[error("a migration failed: {0}; correct the cause and run `muster-worker migrate` again")]
    Migration(#[source] Cause),
    /// Tables could not be distributed over the nodes of a cluster.
    #[error(
        "the tables are not all distributed as they are to be: {0}; correct the cause and run `muster-worker migrate` again"
    )]
    Distribution(#[source] Cause),
    /// What was asked is beyond a bound, which the text names.
    #[error("{0}")]
    OutOfBounds(String),
    /// A defect in Muster: a statement or row that should not have been possible.
    #[error("storage met a defect: {0}; report it with the log")]
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

/// Whose fault a failed write is, as far as the error tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultOf {
    /// The server's, whatever was asked of it: it is out of reach, shuts down, refuses writes, or has used up something.
    Server,
    /// Of whoever else holds a lock.
    Others,
    /// Not known: the statement's, its rows', or the server's all the same.
    Unknown,
}

/// A node of a cluster that has the rows gave no sign of life when it was last asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "the node of the cluster that has this community's rows does not answer: check that it runs and can be reached"
)]
pub(crate) struct SilentNode;

/// A row is there already that was inserted as new. What was to be written is written again, guarded.
#[derive(Debug, thiserror::Error)]
#[error("a row is there already that was inserted as new")]
struct ThereAlready(#[source] Error);

impl From<SilentNode> for Error {
    fn from(silent: SilentNode) -> Self {
        Self::Unavailable(silent.into())
    }
}

impl Error {
    /// Where the fault lies.
    #[must_use]
    pub fn fault_of(&self) -> FaultOf {
        match (self, self.sqlstate()) {
            (_, Some(code)) if is_of(&code, &["40", "55P03", "55006"]) => FaultOf::Others,
            (Self::Unavailable(cause), _) if cause.is::<SilentNode>() => FaultOf::Others,
            // A statement that takes too long, or a page that cannot be read, may be one event's or one community's.
            (_, Some(code)) if is_of(&code, &["57014", "58"]) => FaultOf::Unknown,
            // So may what took longer in all than a write may: the server's own bound begins anew with each statement.
            (Self::Unavailable(cause), _) if cause.is::<Elapsed>() => FaultOf::Unknown,
            // The communities of a node that is away.
            (Self::Unavailable(_), _) if self.is_of_a_node() => FaultOf::Unknown,
            (Self::Unavailable(_), _) => FaultOf::Server,
            _ => FaultOf::Unknown,
        }
    }

    /// The server's code of it, SQLSTATE, where it is an error of the server.
    #[must_use]
    pub fn sqlstate(&self) -> Option<String> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            let words = match error.downcast_ref::<DieselError>() {
                Some(DieselError::DatabaseError(_, info)) => Some(info.message()),
                _ => None,
            };
            if let Some(code) = words.and_then(sqlstate::of) {
                return Some(code.to_owned());
            }
            if let Some(code) = error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code()) {
                return Some(code.code().to_owned());
            }
            cause = error.source();
        }
        None
    }

    /// The same, told apart where a row is there already that was inserted as new.
    pub(crate) fn of_plain_insertion(self) -> Self {
        if self.sqlstate().is_some_and(|code| code == "23505") {
            return Self::Defect(ThereAlready(self).into());
        }
        self
    }

    /// Whether a row is there already that was inserted as new. See [`Insertion`](crate::sql::statement::Insertion).
    pub(crate) fn is_there_already(&self) -> bool {
        matches!(self, Self::Defect(cause) if cause.is::<ThereAlready>())
    }

    /// Whether it is of a node of a cluster, and the others may be well.
    pub(crate) fn is_of_a_node(&self) -> bool {
        matches!(self, Self::Unavailable(cause) if cause.is::<SilentNode>())
            || self.says(sqlstate::is_of_a_node)
    }

    /// Whether a session that had it is well: it is of a node, and nothing went wrong beside it.
    pub(crate) fn spares_the_session(&self) -> bool {
        let Self::Unavailable(cause) = self else { return false };
        matches!(cause.downcast_ref::<DieselError>(), Some(DieselError::DatabaseError(_, info))
            if sqlstate::is_of_a_node(info.message()))
    }

    /// Whether it may be of one node of a cluster: it said so, or the statement took too long, as it does where a node does not
    /// answer. What other shards have can be asked for all the same.
    #[must_use]
    pub fn may_be_of_a_node(&self) -> bool {
        self.is_of_a_node() || self.sqlstate().is_some_and(|code| code == "57014")
    }

    /// Whether the driver's error among the causes has such words.
    fn says(&self, is_so: impl Fn(&str) -> bool) -> bool {
        std::iter::successors(Some::<&(dyn std::error::Error + 'static)>(self), |error| error.source())
            .filter_map(|error| error.downcast_ref::<DieselError>())
            .any(|error| matches!(error, DieselError::DatabaseError(_, info) if is_so(info.message())))
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether a session's prepared statements are out of date. Those of the other idle sessions are likely to be as well.
    pub(crate) fn is_out_of_date(&self) -> bool {
        self.is_transient() && self.says(is_out_of_date)
    }

    /// Whether a server is there and refuses the credentials, or does not prove by TLS who it is.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        let Self::Unavailable(cause) = self else { return false };
        std::iter::successors(Some::<&(dyn std::error::Error + 'static)>(&**cause), |error| error.source())
            .any(|error| match error.downcast_ref::<tokio_postgres::Error>() {
                // Invalid authorization.
                Some(error) => error.code().is_some_and(|state| state.code().starts_with("28")),
                None => is_from_tls(error),
            })
    }

    /// The keys at hand are from another database, such as a standby that was behind.
    pub(crate) fn other_keys() -> Self {
        Self::Unavailable("the community was created anew: retry".into())
    }

    pub(crate) fn defect(what: impl Into<Cause>) -> Self {
        Self::Defect(what.into())
    }
}

fn is_from_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<rustls::Error>()
        || error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .is_some_and(|inner| inner.is::<rustls::Error>())
}

/// Whether the connection was lost or its session is out of date, whatever was asked of it: another connection answers.
pub(crate) fn is_of_the_connection(error: &DieselError) -> bool {
    match error {
        DieselError::DatabaseError(kind, info) => match kind {
            DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => true,
            DatabaseErrorKind::Unknown => {
                is_out_of_date(info.message())
                    || !sqlstate::is_of_a_node(info.message())
                        && sqlstate::of(info.message()).is_some_and(ends_the_session)
            }
            _ => false,
        },
        _ => false,
    }
}

/// Whether what a session has prepared is good for nothing: a table was altered since, or a pooler or an operator has
/// discarded it. It stays so as long as the session lasts.
fn is_out_of_date(message: &str) -> bool {
    sqlstate::is_stale_plan(message) || sqlstate::of(message) == Some("26000")
}

/// Connection exceptions, an operator or a crash that ends sessions, and a session that was idle or open for too long.
fn ends_the_session(code: &str) -> bool {
    is_of(code, &["08", "57P", "25P03", "25P04"])
}

fn is_of(code: &str, classes: &[&str]) -> bool {
    classes.iter().any(|class| code.starts_with(class))
}

/// Whether it is the server and not the statement that fails: besides lost sessions, rollbacks that are nobody's fault,
/// resources that are used up, a statement that was canceled or waited too long, an object in use, and the system below.
fn is_of_the_server(code: &str) -> bool {
    ends_the_session(code) || is_of(code, &["40", "53", "57", "58", "55P03", "55006"])
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        let transient = match &error {
            DieselError::DatabaseError(kind, info) => match kind {
                DatabaseErrorKind::SerializationFailure
                | DatabaseErrorKind::ReadOnlyTransaction
                | DatabaseErrorKind::ClosedConnection
                | DatabaseErrorKind::UnableToSendCommand => true,
                DatabaseErrorKind::Unknown => {
                    is_out_of_date(info.message())
                        || sqlstate::of(info.message()).is_some_and(is_of_the_server)
                }
                _ => false,
            },
            DieselError::BrokenTransactionManager | DieselError::RollbackErrorOnCommit { .. } => true,
            _ => false,
        };
        if transient { Self::Unavailable(error.into()) } else { Self::Defect(error.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &str) -> DieselError {
        DieselError::DatabaseError(DatabaseErrorKind::Unknown, Box::new(message.to_owned()))
    }

    #[test]
    fn the_code_tells_whose_fault_it_is() {
        assert_eq!(Error::from(SilentNode).fault_of(), FaultOf::Others);
        for (message, fault) in [
            ("57P01: terminating connection", FaultOf::Server),
            ("53100: could not extend file", FaultOf::Server),
            ("08006: connection failure", FaultOf::Server),
            ("0A000: stale plan: Worte", FaultOf::Server),
            ("0A000: cannot do it", FaultOf::Unknown),
            ("40P01: deadlock detected", FaultOf::Others),
            ("55P03: canceling statement due to lock timeout", FaultOf::Others),
            ("57014: canceling statement due to statement timeout", FaultOf::Unknown),
            ("58030: could not read block 7", FaultOf::Unknown),
            ("42501: permission denied for table members", FaultOf::Unknown),
            ("P0001: no", FaultOf::Unknown),
            ("08006: of a node: connection to the remote node failed", FaultOf::Unknown),
            ("57P01: of a node: terminating connection", FaultOf::Unknown),
        ] {
            let error = Error::from(of(message));
            assert_eq!(
                (error.fault_of(), error.sqlstate().as_deref()),
                (fault, message.get(..5)),
                "{message}"
            );
            // One within another, as from a connection that cannot roll back.
            let error = Error::Unavailable(error.into());
            assert_eq!(error.sqlstate().as_deref(), message.get(..5), "{message}");
        }
        let read_only = "25006: cannot execute INSERT in a read-only transaction".to_owned();
        let read_only =
            DieselError::DatabaseError(DatabaseErrorKind::ReadOnlyTransaction, Box::new(read_only));
        assert_eq!(Error::from(read_only).fault_of(), FaultOf::Server);
        let lost = Error::Unavailable("no connection in time".into());
        assert_eq!((lost.fault_of(), lost.sqlstate()), (FaultOf::Server, None));
    }

    #[test]
    fn the_code_decides_and_not_the_words() {
        for (message, transient, of_the_connection) in [
            ("57P01: Verbindung wird abgebrochen", true, true),
            ("25P03: terminating connection", true, true),
            ("08006: of a node: connection to the remote node failed", true, false),
            ("08006: connection failure", true, true),
            ("0A000: stale plan: Worte", true, true),
            ("26000: prepared statement \"s1\" does not exist", true, true),
            ("0A000: cannot do it", false, false),
            ("57014: storniere Anfrage", true, false),
            ("55P03: storniere Anfrage", true, false),
            ("40P01: Verklemmung entdeckt", true, false),
            ("53100: auf dem Gerät ist kein Speicherplatz mehr verfügbar", true, false),
            ("58030: could not write", true, false),
            ("22003: bigint out of range", false, false),
            ("42P01: relation \"connection\" does not exist", false, false),
            ("54000: index row size exceeds maximum", false, false),
            ("25P02: current transaction is aborted", false, false),
            ("XX000: could not open file", false, false),
            ("terminating connection", false, false),
        ] {
            assert_eq!(is_of_the_connection(&of(message)), of_the_connection, "{message}");
            assert_eq!(Error::from(of(message)).is_transient(), transient, "{message}");
        }
    }
}
