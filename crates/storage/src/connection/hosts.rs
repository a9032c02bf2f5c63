//! The hosts of a URL: in which order they are tried, and what is remembered of each.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::session::SessionError;
use super::url::{Host, Place};

/// How long a host that did not answer is tried after all others. A caller does not wait out a silent host each time.
const LAST: Duration = Duration::from_secs(30);
/// From when on a host whose caller has gone counts as one that did not answer.
const SILENT: Duration = Duration::from_millis(500);
/// How long a host's pooler is believed to keep server connections with sessions: its configuration can be changed under way.
const PINNED: Duration = Duration::from_secs(60);
/// The most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Hosts, and what is remembered of each.
pub(crate) struct Hosts {
    list: Vec<Host>,
    random: bool,
    state: Mutex<Vec<State>>,
}

#[derive(Clone, Copy, Default)]
struct State {
    last_until: Option<Instant>,
    pinned_until: Option<Instant>,
}

impl Hosts {
    pub(crate) fn new(list: Vec<Host>, random: bool) -> Self {
        let state = Mutex::new(vec![State::default(); list.len()]);
        Self { list, random, state }
    }

    pub(crate) fn list(&self) -> &[Host] {
        &self.list
    }

    fn with<T>(&self, number: usize, read: impl FnOnce(&mut State) -> T) -> Option<T> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).get_mut(number).map(read)
    }

    /// The hosts with their numbers, in the order to try them: as written, or at random. Those that did not answer lately come at
    /// the end.
    pub(crate) fn order(&self) -> Vec<(usize, &Host)> {
        let now = Instant::now();
        let chance = RandomState::new();
        let mut order: Vec<(usize, &Host)> = self.list.iter().enumerate().collect();
        order.sort_by_cached_key(|(number, _)| {
            let is_last = self.with(*number, |state| state.last_until.is_some_and(|until| now < until));
            (is_last, if self.random { chance.hash_one(number) } else { 0 })
        });
        order
    }

    /// Whether a host's sessions were seen to keep their server connection, not long before.
    pub(crate) fn is_pinned(&self, number: usize) -> bool {
        self.is_pinned_at(number, Instant::now())
    }

    fn is_pinned_at(&self, number: usize, now: Instant) -> bool {
        self.with(number, |state| state.pinned_until.is_some_and(|until| now < until)) == Some(true)
    }

    pub(crate) fn pinned(&self, number: usize) {
        let until = Instant::now().checked_add(PINNED);
        self.with(number, |state| state.pinned_until = until);
    }

    /// Begins to wait for an answer of a host.
    pub(crate) fn asking(&self, number: usize) -> Asking<'_> {
        Asking { hosts: self, number, since: Instant::now(), answered: false }
    }

    /// The addresses of a host, in the order in which to try them.
    pub(crate) async fn addresses(&self, host: &Host) -> Result<Vec<Option<SocketAddr>>, SessionError> {
        let (name, port) = match &host.place {
            Place::Socket(_) => return Ok(vec![None]),
            Place::Tcp { address: Some(address), .. } => return Ok(vec![Some((*address, host.port).into())]),
            Place::Tcp { name, address: None } => (name.as_str(), host.port),
        };
        let found = tokio::net::lookup_host((name, port)).await.map_err(SessionError::Name)?;
        let mut found: Vec<SocketAddr> = found.collect();
        if self.random {
            let chance = RandomState::new();
            found.sort_by_cached_key(|address| chance.hash_one(address));
        }
        found.truncate(MAX_ADDRESSES);
        Ok(found.into_iter().map(Some).collect())
    }
}

/// A wait for a host's answer. A host that has not given one when this is dropped, since its time or its caller's patience is
/// over, comes last for a while.
pub(crate) struct Asking<'a> {
    hosts: &'a Hosts,
    number: usize,
    since: Instant,
    answered: bool,
}

impl Asking<'_> {
    /// Its name was looked up, which says nothing of the host itself.
    pub(crate) fn resolved(mut self) {
        self.answered = true;
    }

    /// It answered, whatever it said.
    pub(crate) fn answered(mut self) {
        self.answered = true;
        self.hosts.with(self.number, |state| state.last_until = None);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.answered && self.since.elapsed() >= SILENT {
            let until = Instant::now().checked_add(LAST);
            self.hosts.with(self.number, |state| state.last_until = until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::url::DatabaseUrl;
    use super::*;

    fn hosts(random: bool) -> Hosts {
        Hosts::new(DatabaseUrl::parse("postgres://a,b,c/m").unwrap().hosts, random)
    }

    fn order(hosts: &Hosts) -> Vec<usize> {
        hosts.order().into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn a_host_that_did_not_answer_comes_last_until_it_does() {
        let hosts = hosts(false);
        assert_eq!(order(&hosts), [0, 1, 2]);
        drop(hosts.asking(0));
        assert_eq!(order(&hosts), [0, 1, 2], "its caller hardly waited");
        let mut asking = hosts.asking(0);
        asking.since = Instant::now().checked_sub(SILENT).unwrap();
        drop(asking);
        assert_eq!(order(&hosts), [1, 2, 0]);
        hosts.asking(0).answered();
        assert_eq!(order(&hosts), [0, 1, 2]);
    }

    #[test]
    fn that_sessions_keep_their_server_connection_is_believed_for_a_while() {
        let hosts = hosts(false);
        assert!(!hosts.is_pinned(0));
        hosts.pinned(0);
        assert!(hosts.is_pinned(0) && !hosts.is_pinned(1));
        assert!(!hosts.is_pinned_at(0, Instant::now() + PINNED));
    }

    #[test]
    fn each_host_comes_first_at_random() {
        let hosts = hosts(true);
        let firsts: std::collections::BTreeSet<usize> = (0..200).map(|_| order(&hosts)[0]).collect();
        assert_eq!(firsts.len(), 3);
    }
}
