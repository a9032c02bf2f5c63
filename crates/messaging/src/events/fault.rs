//! What is at fault when events are not applied: the store, the rows of one community, or an event itself.
//!
//! The rule: when unrelated events fail alike, neither is at fault. If the store's error says that the server is at fault
//! (`ApplyError::Unavailable`), it is the store. After any other error the store is given a [probe](Probe): every kind of write
//! that events cause, for a community of the probe's own, rolled back at the end.
//!
//! 1. The probe fails: the store is at fault. Reading stops, and the events are retried until they are applied. No failure
//!    is counted against any of them.
//! 2. The probe succeeds, and one for a new member of the event's own community fails: that community's rows are at fault.
//!    Its events wait, no failure is counted, and the others go on. Events that wait too long for a lock
//!    (`ApplyError::Busy`) wait likewise, without a probe of their community.
//! 3. Both succeed, and the event fails alone: it is at fault itself. It is delivered again with a growing delay, and becomes
//!    a dead letter after the limit.
//!
//! A batch that takes long is not waited for: the store is probed beside it, and is at fault until the batch ends if the probe fails.
//!
//! A probe decides, not the fate of other events: if a few events all fail, only another write can tell whether all are poison
//! or the store is at fault. It must write everything that events write, or a fault of a table that it leaves out would be
//! blamed on the events.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_domain::GuildId;
use tokio::time::Instant;

use crate::log_budget::LogBudget;

/// How long a fault lasts after its last failure: the shortest time between two changes of state.
const LINGER: Duration = Duration::from_secs(5);
/// The same for a community: above the pause before its events are retried.
const COMMUNITY_LINGER: Duration = Duration::from_secs(10);
/// How often the state is checked for a change.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// How often a fault that lasts is logged.
const LOG_INTERVAL: Duration = Duration::from_mins(1);
/// The most communities at fault that are remembered and counted.
const MAX_COMMUNITIES: usize = 10_000;
/// The most log lines a minute about single events that failed, and about dead letters.
const LINES_PER_MINUTE: u32 = 15;

/// Tries the writes that events cause, and rolls them back: for a community of its own, or for a new member of this one.
pub type Probe = Arc<dyn Fn(Option<GuildId>) -> BoxFuture<'static, Result<(), StoreFailure>> + Send + Sync>;

/// The store's error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct StoreFailure {
    /// Its code, such as PostgreSQL's SQLSTATE.
    pub code: Option<String>,
    /// Its message.
    pub why: String,
}

impl From<&str> for StoreFailure {
    fn from(why: &str) -> Self {
        Self { code: None, why: why.to_owned() }
    }
}

/// A fault that currently keeps events from being applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is at fault.
    pub scope: FaultScope,
    /// The code of the store's error.
    pub code: Option<String>,
    /// How many communities have it; 1 for the store.
    pub count: usize,
}

/// What is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultScope {
    /// The store: nothing is read meanwhile.
    Store,
    /// The rows of communities: their events wait.
    Community,
}

impl FaultScope {
    /// One word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Community => "community",
        }
    }
}

/// The current faults, shared by all lanes, and how much is logged of single events.
#[derive(Debug)]
pub(super) struct Faults {
    state: Mutex<State>,
    /// Log lines about an event that failed.
    pub(super) failure_log: LogBudget,
    /// Log lines about a dead letter.
    pub(super) dead_letter_log: LogBudget,
}

#[derive(Debug, Default)]
struct State {
    store: Option<StoreFault>,
    communities: BTreeMap<GuildId, (StoreFailure, Instant)>,
}

#[derive(Debug)]
struct StoreFault {
    failure: StoreFailure,
    last: Instant,
    /// How many lanes wait for the store.
    lanes: usize,
}

/// A lane that waits for the store, until this is dropped.
pub(super) struct WaitingLane<'a>(&'a Faults);

impl WaitingLane<'_> {
    /// Its batch was retried and failed again.
    pub(super) fn failed_again(&self, failure: StoreFailure) {
        self.0.lock().store_failed(failure, 0);
    }
}

impl Drop for WaitingLane<'_> {
    fn drop(&mut self) {
        if let Some(store) = &mut self.0.lock().store {
            store.lanes = store.lanes.saturating_sub(1);
            store.last = Instant::now();
        }
    }
}

impl State {
    fn store_failed(&mut self, failure: StoreFailure, lanes: usize) {
        let now = Instant::now();
        let known = self.store.take().filter(|store| !store.is_over(now));
        let before = known.map_or(0, |store| store.lanes);
        self.store = Some(StoreFault { failure, last: now, lanes: before.saturating_add(lanes) });
    }

    /// Forgets the faults that are over.
    fn refresh(&mut self, now: Instant) {
        self.store.take_if(|store| store.is_over(now));
        self.communities.retain(|_, (_, last)| now.duration_since(*last) < COMMUNITY_LINGER);
    }
}

impl StoreFault {
    fn is_over(&self, now: Instant) -> bool {
        self.lanes == 0 && now.duration_since(self.last) >= LINGER
    }
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            failure_log: LogBudget::new(LINES_PER_MINUTE),
            dead_letter_log: LogBudget::new(LINES_PER_MINUTE),
        }
    }
}

impl Faults {
    /// The store is at fault, and a lane waits for it until the returned value is dropped.
    pub(super) fn store_failed(&self, failure: StoreFailure) -> WaitingLane<'_> {
        self.lock().store_failed(failure, 1);
        WaitingLane(self)
    }

    /// The rows of a community are at fault.
    pub(super) fn community_failed(&self, guild: &GuildId, failure: StoreFailure) {
        let mut state = self.lock();
        if state.communities.len() < MAX_COMMUNITIES || state.communities.contains_key(guild) {
            state.communities.insert(guild.clone(), (failure, Instant::now()));
        }
    }

    /// Events of these communities were applied.
    pub(super) fn recovered<'a>(&self, guilds: impl IntoIterator<Item = &'a GuildId>) {
        let mut state = self.lock();
        if !state.communities.is_empty() {
            for guild in guilds {
                state.communities.remove(guild);
            }
        }
    }

    /// The current faults, counted by scope and code.
    pub(super) fn current(&self) -> Vec<Fault> {
        let mut state = self.lock();
        state.refresh(Instant::now());
        let mut counts: BTreeMap<(FaultScope, &Option<String>), usize> = BTreeMap::new();
        if let Some(store) = &state.store {
            counts.insert((FaultScope::Store, &store.failure.code), 1);
        }
        for (failure, _) in state.communities.values() {
            *counts.entry((FaultScope::Community, &failure.code)).or_insert(0) += 1;
        }
        counts.into_iter().map(|((scope, code), count)| Fault { scope, code: code.clone(), count }).collect()
    }

    /// Logs faults, for ever: when one begins, when it ends, and once a minute in between.
    pub(super) async fn log_changes(&self) {
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        let (mut store, mut communities) = (FaultLog::default(), FaultLog::default());
        loop {
            let now = ticks.tick().await;
            let (of_store, of_communities) = {
                let mut state = self.lock();
                state.refresh(now);
                let communities = state.communities.len();
                let first = state.communities.iter().next();
                let one = first.map(|(guild, (failure, _))| (communities, guild.clone(), failure.clone()));
                (state.store.as_ref().map(|store| store.failure.clone()), one)
            };
            match (store.update(of_store.is_some(), now), of_store) {
                (Some(Change::AtFault(since)), Some(StoreFailure { code, why })) => {
                    tracing::error!(
                        code,
                        error = why,
                        since_s = since.as_secs(),
                        "the store is at fault: no events are read until it works again"
                    );
                }
                (Some(Change::Ended(since)), _) => {
                    tracing::info!(since_s = since.as_secs(), "the store works again: events are read");
                }
                _ => {}
            }
            match (communities.update(of_communities.is_some(), now), of_communities) {
                (Some(Change::AtFault(_)), Some((communities, guild, StoreFailure { code, why }))) => {
                    tracing::error!(
                        code,
                        error = why,
                        guild.id = guild.as_str(),
                        communities,
                        "events of communities wait, because their rows cannot be changed; this is one of the communities"
                    );
                }
                (Some(Change::Ended(since)), _) => {
                    tracing::info!(since_s = since.as_secs(), "no community's events wait any longer");
                }
                _ => {}
            }
        }
    }

    // A panic with the lock held leaves a consistent state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was logged of a fault: since when it lasts, and when it was logged last.
#[derive(Default)]
struct FaultLog(Option<(Instant, Instant)>);

/// What is to be logged, with how long the fault has lasted.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    AtFault(Duration),
    Ended(Duration),
}

impl FaultLog {
    fn update(&mut self, at_fault: bool, now: Instant) -> Option<Change> {
        match self.0 {
            None if at_fault => {
                self.0 = Some((now, now));
                Some(Change::AtFault(Duration::ZERO))
            }
            Some((since, _)) if !at_fault => {
                self.0 = None;
                Some(Change::Ended(now.duration_since(since)))
            }
            Some((since, last)) if now.duration_since(last) >= LOG_INTERVAL => {
                self.0 = Some((since, now));
                Some(Change::AtFault(now.duration_since(since)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: &str) -> StoreFailure {
        StoreFailure { code: Some(code.to_owned()), why: "why".to_owned() }
    }

    fn fault(scope: FaultScope, code: &str, count: usize) -> Fault {
        Fault { scope, code: Some(code.to_owned()), count }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_fault_ends_some_seconds_after_the_last_lane_goes_on() {
        let faults = Faults::default();
        let (one, two) = (faults.store_failed(failure("42501")), faults.store_failed(failure("42P01")));
        drop(one);
        tokio::time::advance(LINGER * 2).await;
        assert_eq!(faults.current(), [fault(FaultScope::Store, "42P01", 1)]);
        two.failed_again(failure("53100"));
        drop(two);
        tokio::time::advance(LINGER / 2).await;
        assert_eq!(faults.current(), [fault(FaultScope::Store, "53100", 1)]);
        tokio::time::advance(LINGER).await;
        assert_eq!(faults.current(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn community_faults_are_counted_by_code_until_they_recover_or_expire() {
        let faults = Faults::default();
        let guild = |number: usize| GuildId::parse(number.to_string()).unwrap();
        for number in 0..MAX_COMMUNITIES * 2 {
            faults.community_failed(&guild(number), failure(if number == 0 { "23505" } else { "P0001" }));
        }
        let counted = [
            fault(FaultScope::Community, "23505", 1),
            fault(FaultScope::Community, "P0001", MAX_COMMUNITIES - 1),
        ];
        assert_eq!(faults.current(), counted);
        faults.recovered([&guild(0)]);
        assert_eq!(faults.current(), counted[1..]);
        tokio::time::advance(COMMUNITY_LINGER).await;
        assert_eq!(faults.current(), []);
    }

    #[test]
    fn a_fault_is_logged_when_it_begins_and_ends_and_once_a_minute_between() {
        let mut log = FaultLog::default();
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(log.update(false, begin), None);
        assert_eq!(log.update(true, begin), Some(Change::AtFault(Duration::ZERO)));
        let lines: Vec<_> = (1..=130).filter_map(|second| log.update(true, after(second))).collect();
        assert_eq!(
            lines,
            [Change::AtFault(Duration::from_secs(60)), Change::AtFault(Duration::from_secs(120))]
        );
        assert_eq!(log.update(false, after(131)), Some(Change::Ended(Duration::from_secs(131))));
        assert_eq!(log.update(false, after(132)), None);
    }
}
