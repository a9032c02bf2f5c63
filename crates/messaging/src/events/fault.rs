//! Whose fault it is that events are not applied: the store's, that of one community's rows, or an event's own.
//!
//! The rule: what meets unrelated events alike is not theirs. A failure that is the server's by its kind
//! ([`ApplyError::Unavailable`](super::consumer::ApplyError::Unavailable)) is the store's. After any other, the store is given a [probe](Probe): writes as events cause
//! them, of each kind, for a community of the probe's own, that are then taken back.
//!
//! 1. The probe fails: it is the store's fault. Reading stalls, and the events are tried again until they are applied. None
//!    of them is counted as failed.
//! 2. The probe passes, and one for a new member of the event's own community fails: it is the fault of that community's
//!    rows. Its events wait, nothing is counted, and the others go on. So do events that wait for a lock too long, without
//!    being asked for ([`ApplyError::Busy`](super::consumer::ApplyError::Busy)).
//! 3. Both pass, and the event fails alone: it is the event's own. It is delivered again with a growing delay and becomes a
//!    dead letter after the bound.
//!
//! A probe decides, and not what becomes of other events, for there may be no others: of a few events that all fail, either
//! all are poison or the store is at fault, and only another write can tell. It has to write all that events write, or a
//! fault of a table that it passes over would be taken for the events'.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use muster_domain::GuildId;
use tokio::time::Instant;

use crate::log_budget::LogBudget;

/// How long a fault is told of after its last failure: the shortest time between two changes of state.
const LINGER: Duration = Duration::from_secs(5);
/// The same for a community: above the pause before its events are tried again.
const COMMUNITY_LINGER: Duration = Duration::from_secs(10);
/// How often it is looked whether the state has changed.
const LOOK: Duration = Duration::from_millis(250);
/// How often a fault that lasts is told of.
const REMIND: Duration = Duration::from_mins(1);
/// The most communities at fault that are remembered, to be counted.
const MAX_COMMUNITIES: usize = 10_000;
/// The most lines a minute about single events that failed, and about dead letters.
const LINES: u32 = 15;

/// Asks the store for a write as events cause them, taken back: for a community of its own, or for a new member of this one.
pub type Probe = Arc<dyn Fn(Option<GuildId>) -> BoxFuture<'static, Result<(), StoreFailure>> + Send + Sync>;

/// What the store said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct StoreFailure {
    /// Its own code of the failure, such as PostgreSQL's SQLSTATE.
    pub code: Option<String>,
    /// Its words.
    pub why: String,
}

impl From<&str> for StoreFailure {
    fn from(why: &str) -> Self {
        Self { code: None, why: why.to_owned() }
    }
}

/// A fault that keeps events from being applied at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it is a fault of.
    pub scope: FaultScope,
    /// The store's code of it.
    pub code: Option<String>,
    /// How many communities it is met in; 1 for the store.
    pub count: usize,
}

/// What a fault is one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultScope {
    /// Of the store: nothing is read meanwhile.
    Store,
    /// Of the rows of communities: their events wait.
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

/// The faults that there are, shared by all lanes, and what of events is told of in the log.
#[derive(Debug)]
pub(super) struct Faults {
    state: Mutex<State>,
    /// Lines about an event that failed.
    pub(super) failed_lines: LogBudget,
    /// Lines about a dead letter.
    pub(super) dead_lines: LogBudget,
}

#[derive(Debug, Default)]
struct State {
    store: Option<StoreFault>,
    communities: BTreeMap<GuildId, (StoreFailure, Instant)>,
}

#[derive(Debug)]
struct StoreFault {
    failure: StoreFailure,
    since: Instant,
    last: Instant,
    /// How many lanes cannot go on for it.
    lanes: usize,
}

/// A lane that cannot go on, until it is dropped.
pub(super) struct AtFault<'a>(&'a Faults);

impl AtFault<'_> {
    /// It was tried again and failed.
    pub(super) fn still(&self, failure: StoreFailure) {
        self.0.lock().fail(failure, 0);
    }
}

impl Drop for AtFault<'_> {
    fn drop(&mut self) {
        if let Some(store) = &mut self.0.lock().store {
            store.lanes = store.lanes.saturating_sub(1);
            store.last = Instant::now();
        }
    }
}

impl State {
    fn fail(&mut self, failure: StoreFailure, lanes: usize) {
        let now = Instant::now();
        let known = self.store.take().filter(|store| !store.is_over(now));
        let (since, before) = known.map_or((now, 0), |store| (store.since, store.lanes));
        self.store = Some(StoreFault { failure, since, last: now, lanes: before.saturating_add(lanes) });
    }

    /// Forgets what is over.
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
            failed_lines: LogBudget::new(LINES),
            dead_lines: LogBudget::new(LINES),
        }
    }
}

impl Faults {
    /// A lane has met a fault of the store and does not go on until what this answers is dropped.
    pub(super) fn store(&self, failure: StoreFailure) -> AtFault<'_> {
        self.lock().fail(failure, 1);
        AtFault(self)
    }

    /// The rows of a community were met by a fault.
    pub(super) fn community(&self, guild: &GuildId, failure: StoreFailure) {
        let mut state = self.lock();
        if state.communities.len() < MAX_COMMUNITIES || state.communities.contains_key(guild) {
            state.communities.insert(guild.clone(), (failure, Instant::now()));
        }
    }

    /// Events of these communities were applied.
    pub(super) fn work<'a>(&self, guilds: impl IntoIterator<Item = &'a GuildId>) {
        let mut state = self.lock();
        if !state.communities.is_empty() {
            for guild in guilds {
                state.communities.remove(guild);
            }
        }
    }

    /// All of them, counted by scope and code.
    pub(super) fn now(&self) -> Vec<Fault> {
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

    /// Tells of faults in the log, for ever: when one begins, when it ends, and once a minute between.
    pub(super) async fn tell(&self) {
        let mut looks = tokio::time::interval(LOOK);
        let (mut store, mut communities) = (Told::default(), Told::default());
        loop {
            let now = looks.tick().await;
            let (of_store, of_communities) = {
                let mut state = self.lock();
                state.refresh(now);
                let one =
                    state.communities.iter().next().map(|(guild, (failure, _))| {
                        (state.communities.len(), guild.clone(), failure.clone())
                    });
                (state.store.as_ref().map(|store| store.failure.clone()), one)
            };
            match (store.tell(of_store.is_some(), now), of_store) {
                (Some(Tell::Begin), Some(StoreFailure { code, why })) => {
                    tracing::error!(
                        code,
                        error = why,
                        "the store is at fault: no event is read until it is mended"
                    );
                }
                (Some(Tell::Still(since)), Some(StoreFailure { code, why })) => {
                    let since_s = since.as_secs();
                    tracing::error!(
                        code,
                        error = why,
                        since_s,
                        "the store is still at fault: no event is read"
                    );
                }
                (Some(Tell::End(since)), _) => {
                    tracing::info!(since_s = since.as_secs(), "the store is mended: events are read again");
                }
                _ => {}
            }
            match (communities.tell(of_communities.is_some(), now), of_communities) {
                (
                    Some(Tell::Begin | Tell::Still(_)),
                    Some((communities, guild, StoreFailure { code, why })),
                ) => {
                    tracing::error!(
                        code,
                        error = why,
                        guild.id = guild.as_str(),
                        communities,
                        "the events of communities wait, for their rows cannot be changed; this is one of them"
                    );
                }
                (Some(Tell::End(since)), _) => {
                    tracing::info!(since_s = since.as_secs(), "the events of no community wait any longer");
                }
                _ => {}
            }
        }
    }

    // A panic with the lock held leaves a state that is whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was told of a fault: since when it is, and when that was told last.
#[derive(Default)]
struct Told(Option<(Instant, Instant)>);

/// What is to be told, with how long the fault has lasted.
#[derive(Debug, PartialEq, Eq)]
enum Tell {
    Begin,
    Still(Duration),
    End(Duration),
}

impl Told {
    fn tell(&mut self, at_fault: bool, now: Instant) -> Option<Tell> {
        match self.0 {
            None if at_fault => {
                self.0 = Some((now, now));
                Some(Tell::Begin)
            }
            Some((since, _)) if !at_fault => {
                self.0 = None;
                Some(Tell::End(now.duration_since(since)))
            }
            Some((since, last)) if now.duration_since(last) >= REMIND => {
                self.0 = Some((since, now));
                Some(Tell::Still(now.duration_since(since)))
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
    async fn a_fault_of_the_store_lasts_until_every_lane_goes_on_and_a_little_longer() {
        let faults = Faults::default();
        let (one, two) = (faults.store(failure("42501")), faults.store(failure("42P01")));
        drop(one);
        tokio::time::advance(LINGER * 2).await;
        assert_eq!(faults.now(), [fault(FaultScope::Store, "42P01", 1)]);
        two.still(failure("53100"));
        drop(two);
        tokio::time::advance(LINGER / 2).await;
        assert_eq!(faults.now(), [fault(FaultScope::Store, "53100", 1)]);
        tokio::time::advance(LINGER).await;
        assert_eq!(faults.now(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn communities_at_fault_are_counted_by_code_until_they_work_or_are_silent() {
        let faults = Faults::default();
        let guild = |number: usize| GuildId::parse(number.to_string()).unwrap();
        for number in 0..MAX_COMMUNITIES * 2 {
            faults.community(&guild(number), failure(if number == 0 { "23505" } else { "P0001" }));
        }
        let counted = [
            fault(FaultScope::Community, "23505", 1),
            fault(FaultScope::Community, "P0001", MAX_COMMUNITIES - 1),
        ];
        assert_eq!(faults.now(), counted);
        faults.work([&guild(0)]);
        assert_eq!(faults.now(), counted[1..]);
        tokio::time::advance(COMMUNITY_LINGER).await;
        assert_eq!(faults.now(), []);
    }

    #[test]
    fn a_change_is_told_once_and_what_lasts_once_a_minute() {
        let mut told = Told::default();
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        assert_eq!(told.tell(false, begin), None);
        assert_eq!(told.tell(true, begin), Some(Tell::Begin));
        let lines: Vec<_> = (1..=130).filter_map(|second| told.tell(true, after(second))).collect();
        assert_eq!(lines, [Tell::Still(Duration::from_secs(60)), Tell::Still(Duration::from_secs(120))]);
        assert_eq!(told.tell(false, after(131)), Some(Tell::End(Duration::from_secs(131))));
        assert_eq!(told.tell(false, after(132)), None);
    }
}
