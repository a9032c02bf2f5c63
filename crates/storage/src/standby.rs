//! A standby that lists may be read from, while it is known not to be further behind the primary than a bound.
//!
//! How far it is behind is told without another machine's clock, and without a write: the end of the primary's log is marked from time
//! to time, with this process's time, and a session of the standby shows all that was committed before the latest mark which
//! its server has replayed. So an idle primary makes no lag, and a standby that is cut off, paused or slow has one. Each session is
//! judged by itself, since a name or a URL may lead to several servers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{Manager, Metrics, Pool as ManagedPool, QueueMode, RecycleError, RecycleResult};
use diesel::sql_types::{BigInt, Bool};
use diesel::{QueryResult, QueryableByName};
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::pooled_connection::deadpool::Pool;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::connection::{Awaited, StoreConfig};
use crate::error::Error;
use crate::sql::statement::{self, Statement};

/// How long the standby may take for one answer, opening a session included; then the primary is asked, within the same request.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the standby is asked whether it has replayed a mark, and the pause between. It is most often some milliseconds behind.
const TRIES: usize = 6;
const PAUSE: Duration = Duration::from_millis(15);

/// Where the primary's log ends, and which transactions have ended. A commit is on disk before it is acknowledged, so what was
/// acknowledged lies before the end.
const MARK: &str = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS written,
     pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS unfinished,
     (SELECT system_identifier FROM pg_control_system()) AS cluster,
     (SELECT d.oid::bigint FROM pg_database AS d WHERE d.datname = current_database()) AS database";
const LOOK: &str = "SELECT pg_is_in_recovery() AS standby,
     coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint, 0) AS replayed,
     (SELECT system_identifier FROM pg_control_system()) AS cluster,
     (SELECT d.oid::bigint FROM pg_database AS d WHERE d.datname = current_database()) AS database";

/// A standby that lists may be read from. It is fit for it as long as [`Standby::look`] is called, several times within the bound.
pub struct Standby {
    sessions: ManagedPool<Sessions>,
    /// One connection of its own: marks are made while all others are in use.
    primary: Pool<AsyncPgConnection>,
    max_lag: Duration,
    marks: Mutex<Marks>,
    fit: AtomicBool,
    shown: Mutex<Option<Instant>>,
}

/// What a look at the standby came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandbyState {
    /// Lists are read from it. It is behind by no more than this.
    InUse(Duration),
    /// The primary answers.
    NotInUse {
        /// By how much it is behind, as far as that is known.
        lag: Option<Duration>,
        /// Why lists are not read from it.
        why: String,
    },
}

/// Why a session of the standby is not read from.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("it cannot be asked: {0}")]
    Unavailable(#[from] Error),
    #[error("it did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("how far it is behind is not known yet")]
    Unmarked,
    #[error("how far it is behind is not known, for the primary does not answer: {0}")]
    NotMarked(Box<Unfit>),
    #[error("it is no standby any more")]
    Promoted,
    #[error(
        "it is of another cluster, whose system identifier is {found}, and not {wanted}: name a standby of the primary \
         in database.read_url_file"
    )]
    OtherCluster { found: i64, wanted: i64 },
    #[error("it is another database of the same cluster: name the same one in database.read_url_file")]
    OtherDatabase,
    #[error(
        "it has replayed what the primary did not write: make it anew from the primary that is there now"
    )]
    Ahead,
    #[error("it is further behind than the {} s of database.read_max_lag_ms", .0.as_secs_f64())]
    Behind(Duration),
}

/// What is the same on a primary and its standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    cluster: i64,
    database: i64,
}

/// The end of the primary's log at one moment.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Before it was asked for: what was committed by then lies before it.
    asked: Instant,
    answered: Instant,
    written: i64,
    /// Every transaction below this one has ended.
    unfinished: i64,
    primary: Identity,
}

/// Marks, the last one at the end: those of the bound, and one that is older.
#[derive(Debug, Default)]
struct Marks(VecDeque<Mark>);

impl Marks {
    fn push(&mut self, mark: Mark, max_lag: Duration) {
        let before_last = self.0.len().checked_sub(2).and_then(|place| self.0.get(place));
        // However often one is made, there are few of them.
        if before_last.is_some_and(|before| mark.asked.duration_since(before.asked) < max_lag / 64) {
            self.0.pop_back();
        }
        self.0.push_back(mark);
        while self.0.get(1).is_some_and(|second| second.answered.elapsed() >= max_lag) {
            self.0.pop_front();
        }
    }

    /// The moment before which everything that was committed is replayed, where what is written up to `replayed` is.
    fn shown_by(&self, replayed: i64) -> Option<Instant> {
        self.0.iter().rev().find(|mark| mark.written <= replayed).map(|mark| mark.asked)
    }

    /// Whether a transaction, by the 32 bits of its number that a row holds, had ended longer ago than the bound.
    fn shows(&self, transaction: i64, max_lag: Duration) -> bool {
        // The first three stand for rows that are older than any number.
        if transaction < 3 {
            return true;
        }
        let old = self.0.iter().rev().find(|mark| mark.answered.elapsed() >= max_lag);
        old.is_some_and(|mark| {
            let later = mark.unfinished.wrapping_sub(transaction) & 0xffff_ffff;
            (1..0x8000_0000).contains(&later)
        })
    }
}

/// A session of the standby, and what its server was seen to have replayed.
struct Session {
    connection: AsyncPgConnection,
    replayed: i64,
    looked: Option<Instant>,
    /// Whether the primary was seen to have written all that the server had replayed.
    follows: bool,
    /// Everything that was committed before it is shown.
    shown: Option<Instant>,
}

impl Session {
    /// Asks the server how far it is.
    async fn look(&mut self, primary: Identity) -> Result<(), Unfit> {
        let row: Option<LookRow> =
            statement::optional(&mut self.connection, Statement::shared(LOOK)).await.map_err(Error::from)?;
        let row = row.ok_or_else(|| Error::defect("a standby answers nothing"))?;
        if row.cluster != primary.cluster {
            return Err(Unfit::OtherCluster { found: row.cluster, wanted: primary.cluster });
        }
        if row.database != primary.database {
            return Err(Unfit::OtherDatabase);
        }
        if !row.standby {
            return Err(Unfit::Promoted);
        }
        self.replayed = row.replayed;
        self.looked = Some(Instant::now());
        Ok(())
    }

    /// Compares what it has replayed with the marks.
    fn compare(&mut self, marks: &Marks) -> Result<(), Unfit> {
        // A standby has nothing that its primary had not written before.
        let last = marks.0.back().zip(self.looked);
        if let Some((later, _)) = last.filter(|(mark, looked)| mark.asked >= *looked) {
            if self.replayed > later.written {
                return Err(Unfit::Ahead);
            }
            self.follows = true;
        }
        // Until it is seen to follow, it shows nothing that counts.
        if self.follows {
            self.shown = self.shown.max(marks.shown_by(self.replayed));
        }
        Ok(())
    }
}

/// Opens sessions.
struct Sessions(StoreConfig);

impl Manager for Sessions {
    type Type = Session;
    type Error = Error;

    async fn create(&self) -> Result<Session, Error> {
        let connection = self.0.connect_to_standby().boxed().await?;
        Ok(Session { connection, replayed: 0, looked: None, follows: false, shown: None })
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<Error> {
        if session.connection.is_broken() { Err(RecycleError::message("it is broken")) } else { Ok(()) }
    }
}

impl Standby {
    /// The standby of a configuration, where it names one. Nothing is connected yet.
    ///
    /// # Errors
    /// [`Error::Configuration`] when there can be no pool.
    pub fn of(config: &StoreConfig) -> Result<Option<Self>, Error> {
        let Some(standby) = &config.standby else { return Ok(None) };
        let sessions = ManagedPool::builder(Sessions(standby.config.clone()))
            .max_size(standby.config.pool_size)
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(PATIENCE))
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| Error::Configuration(error.to_string()))?;
        Ok(Some(Self {
            sessions,
            primary: config.clone().pool_size(1).pool()?,
            max_lag: standby.max_lag,
            marks: Mutex::default(),
            fit: AtomicBool::new(false),
            shown: Mutex::default(),
        }))
    }

    /// How far it may be behind.
    #[must_use]
    pub const fn max_lag(&self) -> Duration {
        self.max_lag
    }

    /// Sees how far it is behind, and whether it is one of the primary's. To be called several times within the bound.
    pub async fn look(&self) -> StandbyState {
        let looked = self.examine().await;
        self.fit.store(looked.is_ok(), Ordering::Relaxed);
        match looked {
            Ok(lag) => StandbyState::InUse(lag),
            Err(unfit) => {
                let shown = *self.shown.lock().unwrap_or_else(PoisonError::into_inner);
                StandbyState::NotInUse { lag: shown.map(|shown| shown.elapsed()), why: unfit.to_string() }
            }
        }
    }

    /// Looks until it is known to be fit, or as long as it may be behind.
    pub async fn measure(&self) -> StandbyState {
        let end = Instant::now() + self.max_lag.max(PATIENCE);
        loop {
            let state = self.look().await;
            if matches!(state, StandbyState::InUse(_)) || Instant::now() >= end {
                return state;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn examine(&self) -> Result<Duration, Unfit> {
        let marked = within(self.mark()).await;
        let newest = self.with(|marks| marks.0.back().map(|mark| mark.asked));
        let examined = within(async {
            let mut session = self.session().await?;
            let examined = session.get()?;
            for _ in 0..TRIES {
                self.ask(examined).await?;
                if examined.shown >= newest {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            let shown = examined.shown;
            drop(session.take());
            Ok(shown)
        });
        let shown = match (examined.await, marked) {
            (Err(Unfit::Unmarked), Err(unmarked)) => return Err(Unfit::NotMarked(Box::new(unmarked))),
            (Ok(shown), Err(unmarked)) if !is_within(shown, self.max_lag) => {
                return Err(Unfit::NotMarked(Box::new(unmarked)));
            }
            (examined, _) => examined?,
        };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = shown;
        match shown.map(|shown| shown.elapsed()) {
            Some(lag) if lag <= self.max_lag => Ok(lag),
            _ => Err(Unfit::Behind(self.max_lag)),
        }
    }

    /// Whether lists may be read from it, as it was seen last.
    pub(crate) fn is_fit(&self) -> bool {
        self.fit.load(Ordering::Relaxed)
    }

    /// Whether each list that is read from now on shows what a transaction wrote, by the number that a row holds of it.
    pub(crate) fn shows_transaction(&self, transaction: i64) -> bool {
        self.with(|marks| marks.shows(transaction, self.max_lag))
    }

    /// Runs a read on a session that is behind by no more than the bound, and answers how long it took.
    pub(crate) async fn read<T, F>(&self, run: F) -> Result<(T, Duration), Error>
    where
        F: for<'c> Fn(&'c mut AsyncPgConnection) -> BoxFuture<'c, QueryResult<T>>,
    {
        let reading = within(async {
            let mut session = self.session().await?;
            let fresh = session.get()?;
            self.freshen(fresh).await?;
            let started = Instant::now();
            let answer = run(&mut fresh.connection).await.map_err(Error::from)?;
            drop(session.take());
            Ok((answer, started.elapsed()))
        });
        reading.await.map_err(|unfit| match unfit {
            Unfit::Unavailable(error) => error,
            unfit => {
                if matches!(unfit, Unfit::Silent) {
                    // Until the next look nobody else waits for it.
                    self.fit.store(false, Ordering::Relaxed);
                }
                Error::Unavailable(Box::new(unfit))
            }
        })
    }

    pub(crate) fn close(&self) {
        self.sessions.close();
        self.primary.close();
    }

    /// Sees to it that a session is behind by no more than the bound.
    async fn freshen(&self, session: &mut Session) -> Result<(), Unfit> {
        self.with(|marks| session.compare(marks))?;
        if !is_within(session.shown, self.max_lag / 2) {
            self.ask(session).await?;
        }
        if is_within(session.shown, self.max_lag) { Ok(()) } else { Err(Unfit::Behind(self.max_lag)) }
    }

    /// Asks a session's server how far it is, and compares that with the marks. What a new one has replayed, the primary is seen
    /// to have written.
    async fn ask(&self, session: &mut Session) -> Result<(), Unfit> {
        self.with(|marks| session.compare(marks))?;
        let primary = self.with(|marks| marks.0.back().map(|mark| mark.primary)).ok_or(Unfit::Unmarked)?;
        session.look(primary).await?;
        if !session.follows {
            self.mark().await?;
        }
        self.with(|marks| session.compare(marks))
    }

    async fn session(&self) -> Result<Awaited<Sessions>, Unfit> {
        let session = self.sessions.get().await.map_err(|error| {
            self.fit.store(false, Ordering::Relaxed);
            Error::Unavailable(error.into())
        })?;
        Ok(Awaited::new(session))
    }

    /// Marks the end of the primary's log.
    async fn mark(&self) -> Result<(), Unfit> {
        let connection = self.primary.get().await.map_err(|error| Error::Unavailable(error.into()))?;
        let mut connection = Awaited::new(connection);
        let asked = Instant::now();
        let row: Option<MarkRow> =
            statement::optional(connection.get()?, Statement::shared(MARK)).await.map_err(Error::from)?;
        drop(connection.take());
        let row = row.ok_or_else(|| Error::defect("a primary answers nothing"))?;
        let primary = Identity { cluster: row.cluster, database: row.database };
        let answered = Instant::now();
        let mark = Mark { asked, answered, written: row.written, unfinished: row.unfinished, primary };
        self.with(|marks| marks.push(mark, self.max_lag));
        Ok(())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Marks) -> T) -> T {
        work(&mut self.marks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::fmt::Debug for Standby {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Standby").field("max_lag", &self.max_lag).finish_non_exhaustive()
    }
}

async fn within<T>(work: impl Future<Output = Result<T, Unfit>>) -> Result<T, Unfit> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| Unfit::Silent)?
}

fn is_within(shown: Option<Instant>, bound: Duration) -> bool {
    shown.is_some_and(|shown| shown.elapsed() <= bound)
}

#[derive(QueryableByName)]
struct MarkRow {
    #[diesel(sql_type = BigInt)]
    written: i64,
    #[diesel(sql_type = BigInt)]
    unfinished: i64,
    #[diesel(sql_type = BigInt)]
    cluster: i64,
    #[diesel(sql_type = BigInt)]
    database: i64,
}

#[derive(QueryableByName)]
struct LookRow {
    #[diesel(sql_type = Bool)]
    standby: bool,
    #[diesel(sql_type = BigInt)]
    replayed: i64,
    #[diesel(sql_type = BigInt)]
    cluster: i64,
    #[diesel(sql_type = BigInt)]
    database: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(2);

    /// A mark that was made so many milliseconds ago.
    fn mark(ago: u64, written: i64, unfinished: i64) -> Mark {
        let asked = Instant::now().checked_sub(Duration::from_millis(ago)).unwrap();
        let primary = Identity { cluster: 1, database: 2 };
        Mark { asked, answered: asked, written, unfinished, primary }
    }

    fn marks(made: &[(u64, i64, i64)]) -> Marks {
        let mut marks = Marks::default();
        for (ago, written, unfinished) in made {
            marks.push(mark(*ago, *written, *unfinished), BOUND);
        }
        marks
    }

    #[test]
    fn a_session_is_as_new_as_the_latest_mark_that_it_has_replayed() {
        let marks = marks(&[(1500, 10, 5), (1000, 20, 6), (500, 20, 6), (100, 30, 7)]);
        let ago = |replayed| marks.shown_by(replayed).map(|shown| shown.elapsed().as_millis() / 100 * 100);
        assert_eq!(
            [ago(9), ago(10), ago(19), ago(20), ago(29)],
            [None, Some(1500), Some(1500), Some(500), Some(500)]
        );
        assert_eq!(ago(30), Some(100), "an idle primary makes no lag");
        assert_eq!(ago(31), Some(100));
    }

    #[test]
    fn marks_are_kept_for_the_bound_and_one_before_it() {
        let marks = marks(&[(9000, 1, 1), (3000, 2, 2), (2500, 3, 3), (1500, 4, 4), (0, 5, 5)]);
        assert_eq!(marks.0.iter().map(|mark| mark.written).collect::<Vec<_>>(), [3, 4, 5]);
        let often: Vec<_> = (0..2000).rev().map(|ago| (ago, 1, 1)).collect();
        assert!(self::marks(&often).0.len() < 140);
    }

    #[test]
    fn a_transaction_is_shown_by_every_list_when_it_had_ended_before_the_bound() {
        let turn = 1_i64 << 32;
        let marks = marks(&[(2500, 1, turn + 100), (1500, 2, turn + 200)]);
        for (transaction, shown) in [
            (99, true),
            (100, false),
            (150, false),
            (199, false),
            (turn - 1, true),
            // Of a row that is frozen, and of no number.
            (2, true),
            (0, true),
            // More than half of a turn before is none: it is one that is still to come.
            (100 + (1 << 31), false),
        ] {
            assert_eq!(marks.shows(transaction, BOUND), shown, "{transaction}");
        }
        assert!(!Marks::default().shows(99, BOUND), "nothing is known of the time before the start");
    }
}
