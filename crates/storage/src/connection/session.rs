//! What a session with PostgreSQL is to be: settings are made by SQL once it stands, and seen to hold. So they do not
//! depend on what the server, the database or the role has for defaults, nor on what a pooler in between lets through.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use futures_util::future::join3;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::url::Target;
use crate::error::Error;

/// What Muster's correctness rests on. `options` in the URL may not change these.
const FIXED: [(&str, &str); 9] = [
    // An event is acknowledged after its commit, so a commit must be on disk.
    ("synchronous_commit", "on"),
    // Who waited for a lock reads what its holder has written.
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("client_encoding", "UTF8"),
    ("timezone", "UTC"),
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("standard_conforming_strings", "on"),
    ("bytea_output", "hex"),
];

/// What an operator may set otherwise, by `options` in the URL.
///
/// No plan depends on these: every statement is planned well by its shape and its tables' statistics, as a node that does not have
/// these settings would plan it. They save work: a plan is made once a statement and session, and not compiled. One that is made while
/// a table has a page or two would read all of it, and stay until the table is analysed, up to a minute after it has grown.
const USUAL: [(&str, &str); 7] = [
    // Tables are named without a schema; a role's own path must not lead to others of the same names.
    ("search_path", "public"),
    ("plan_cache_mode", "force_generic_plan"),
    ("jit", "off"),
    ("enable_seqscan", "off"),
    // A read that outlasts its deadline is given up with its connection, and the server looks whether it is still there.
    ("client_connection_check_interval", "1s"),
    // The pool keeps idle sessions, and bounds statements, not transactions.
    ("idle_session_timeout", "0"),
    ("transaction_timeout", "0"),
];

/// What is otherwise, whatever the URL says, where the server coordinates a cluster of Citus.
const OF_A_CLUSTER: [(&str, &str); 3] = [
    // An `INSERT` of a batch has no plan that does not know its values. Others are planned once all the same: the server sees that
    // it costs no more.
    ("plan_cache_mode", "auto"),
    // A node that does not answer is given up before the statement is, and holds up its own communities only.
    ("citus.node_connection_timeout", "1500"),
    // What a transaction sets for itself holds for its part on a node.
    ("citus.propagate_set_commands", "local"),
];

/// A server before 17 has no `transaction_timeout`.
const MAKE: &str = "SELECT name, set_config(name, value, false) FROM unnest($1, $2, $3) AS wanted (name, value, of_a_cluster)
     WHERE (name <> 'transaction_timeout' OR current_setting(name, true) IS NOT NULL)
         AND (NOT of_a_cluster OR EXISTS (SELECT FROM pg_extension WHERE extname = 'citus'))";
const READ: &str = "SELECT name, current_setting(name, true) FROM unnest($1) AS made (name)";
const FACTS: &str =
    "SELECT pg_backend_pid(), pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
     current_setting('session_replication_role')";

/// The settings of a session.
#[derive(Clone)]
pub(crate) struct Settings {
    names: Vec<String>,
    values: Vec<String>,
    /// Whether they are made on the coordinator of a cluster only.
    of_a_cluster: Vec<bool>,
}

/// Refuses `options` that would change what Muster rests on.
pub(crate) fn may_set(options: &[(String, String)]) -> Result<(), Error> {
    let fixed = |(name, _): &(String, String)| FIXED.iter().find(|(fixed, _)| fixed == name);
    match options.iter().find_map(fixed) {
        Some((name, value)) => Err(Error::Configuration(format!(
            "options sets {name}, which Muster needs to be {value}: leave it out"
        ))),
        None => Ok(()),
    }
}

/// How long a lock is waited for, in milliseconds, where a write may take so long.
pub(crate) const fn lock_timeout(write: Duration) -> u128 {
    write.as_millis() / 2
}

impl Settings {
    /// Statements may take `write`. A lock is waited for less long, so that the message tells the two apart. `options` come
    /// before what is usual.
    pub(crate) fn new(write: Duration, options: &[(String, String)]) -> Self {
        let timeouts = [
            ("statement_timeout", write.as_millis()),
            ("lock_timeout", lock_timeout(write)),
            ("idle_in_transaction_session_timeout", write.as_millis()),
        ];
        let settings: BTreeMap<String, String> = USUAL
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .chain(timeouts.map(|(name, value)| (name.to_owned(), value.to_string())))
            .chain(options.iter().cloned())
            .chain(FIXED.map(|(name, value)| (name.to_owned(), value.to_owned())))
            .collect();
        let mut all = Self { names: Vec::new(), values: Vec::new(), of_a_cluster: Vec::new() };
        let of_a_cluster = OF_A_CLUSTER.map(|(name, value)| (name.to_owned(), value.to_owned(), true));
        for (name, value, of_a_cluster) in
            settings.into_iter().map(|(name, value)| (name, value, false)).chain(of_a_cluster)
        {
            all.names.push(name);
            all.values.push(value);
            all.of_a_cluster.push(of_a_cluster);
        }
        all
    }

    /// Applies the settings, verifies that they hold, and returns the session's facts. One round trip: two transactions.
    pub(crate) async fn apply(&self, client: &Client) -> Result<Facts, SessionError> {
        let (names, values, of_a_cluster): (&(dyn ToSql + Sync), &(dyn ToSql + Sync), &(dyn ToSql + Sync)) =
            (&self.names, &self.values, &self.of_a_cluster);
        let wanted =
            [(names, Type::TEXT_ARRAY), (values, Type::TEXT_ARRAY), (of_a_cluster, Type::BOOL_ARRAY)];
        let (made, read, facts) = join3(
            client.query_typed(MAKE, &wanted),
            client.query_typed(READ, &[(names, Type::TEXT_ARRAY)]),
            client.query_typed_one(FACTS, &[]),
        )
        .await;
        let made = made.map_err(SessionError::NotMade)?;
        let read: HashMap<String, Option<String>> = read?
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, SessionError>>()?;
        // The last of a name counts.
        let made: HashMap<String, String> = made
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_, SessionError>>()?;
        for (name, made) in made {
            match read.get(&name) {
                Some(Some(value)) if *value == made => {}
                _ => return Err(SessionError::NotHeld(name)),
            }
        }
        let facts = facts?;
        let triggers: String = facts.try_get(3)?;
        if triggers != "origin" {
            return Err(SessionError::Replica(triggers));
        }
        Ok(Facts { process: facts.try_get(0)?, standby: facts.try_get(1)?, read_only: facts.try_get(2)? })
    }
}

/// What a session turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The server's process.
    pub(crate) process: i32,
    /// Whether the server is a standby.
    pub(crate) standby: bool,
    /// Whether transactions are read-only: on a standby, or by `default_transaction_read_only`.
    pub(crate) read_only: bool,
}

impl Facts {
    /// Refuses a session that is not wanted. `PreferStandby` wants each: which comes first is its caller's matter.
    pub(crate) fn suit(&self, target: Target) -> Result<(), SessionError> {
        let (wanted, is) = match target {
            Target::Any | Target::PreferStandby => return Ok(()),
            Target::ReadWrite => (!self.read_only, "read-only"),
            Target::ReadOnly => (self.read_only, "not read-only"),
            Target::Primary => (!self.standby, "a standby"),
            Target::Standby => (self.standby, "no standby"),
        };
        if wanted { Ok(()) } else { Err(SessionError::PassedOver { target: target.as_str(), is }) }
    }
}

/// Whether a session of a pooler keeps its server connection from one transaction to the next. It does not survive
/// this.
///
/// The server is told to end the session as soon as it is idle. Where the session is the server's or has a server connection to
/// itself, it is gone then. A pooler that has lent the connection for one transaction loses it as well, but the session goes
/// on with another.
pub(crate) async fn is_pinned(client: &Client) -> Result<bool, SessionError> {
    /// How long the server may take to end an idle session.
    const GONE: Duration = Duration::from_millis(500);
    const ASK: &str = "SELECT pg_backend_pid(), current_setting('idle_session_timeout') = '1ms'";
    let before = client.query_typed_one(
        "SELECT pg_backend_pid(), set_config('idle_session_timeout', '1ms', false) FROM pg_sleep(0)",
        &[],
    );
    let before: i32 = before.await?.try_get(0)?;
    loop {
        tokio::time::sleep(GONE / 10).await;
        if client.is_closed() {
            return Ok(true);
        }
        tokio::time::sleep(GONE).await;
        match client.query_typed_one(ASK, &[]).await {
            Err(_) => return Ok(true),
            // The same session in the same process, which was too busy to end it yet.
            Ok(row) if row.try_get::<_, i32>(0)? == before && row.try_get(1)? => {}
            Ok(_) => return Ok(false),
        }
    }
}

/// Why a session is not fit for use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    // Not transparent: who looks for the driver's error finds it among the causes.
    #[error("{0}")]
    Driver(#[from] tokio_postgres::Error),
    #[error("the session's settings could not be applied: {0}")]
    NotMade(#[source] tokio_postgres::Error),
    #[error(
        "{0} was set for the session and does not hold: if a pooler is in between, give it pool_mode = session, or \
         connect to PostgreSQL itself"
    )]
    NotHeld(String),
    #[error(
        "a pooler in between gives the session another server connection for each transaction, where settings do not \
         hold: give it pool_mode = session for this database, or connect to PostgreSQL itself"
    )]
    NotPinned,
    #[error(
        "session_replication_role is {0}, under which foreign keys are not held: reset it for the role and the database"
    )]
    Replica(String),
    #[error("passed over: it is {is}, and target_session_attrs is {target}")]
    PassedOver { target: &'static str, is: &'static str },
    #[error("no answer within {} s", .0.as_secs_f64())]
    Silent(Duration),
    #[error("the host name cannot be resolved ({0}): check the name and DNS")]
    Name(#[source] std::io::Error),
    #[error("the connection was closed")]
    Closed,
    #[error("the driver rejects the connection: {0}")]
    Handover(#[source] diesel::ConnectionError),
}

impl SessionError {
    /// Whether it stays so until an operator changes a configuration.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::NotHeld(_) | Self::NotPinned | Self::Replica(_) => true,
            // There is no such setting, or not with this value, or the role may not make it.
            Self::NotMade(error) => error
                .code()
                .is_some_and(|code| ["22", "42", "55P02"].iter().any(|class| code.code().starts_with(class))),
            _ => false,
        }
    }

    /// The message with its causes, each once.
    pub(crate) fn told(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                text = format!("{text}: {message}");
            }
            cause = error.source();
        }
        text
    }
}
