//! Rate limits: requests a second of a community, and of one caller in it. Each replica counts for itself.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use muster_domain::CommunityId;
use muster_messaging::api::Caller;

use crate::metrics::{self, Scope};
use crate::settings::Limits;

/// How many communities are remembered.
const COMMUNITIES: u64 = 10_000;
/// A counter that was not used for this long is full again, and is forgotten.
const IDLE: Duration = Duration::from_mins(10);

/// A request that came too soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The limit that refused it.
    pub(crate) scope: Scope,
    /// When to ask again.
    pub(crate) wait: Duration,
    /// Whether the counter has refused nothing before.
    pub(crate) first: bool,
}

/// How much one community or caller has asked for.
struct Counter {
    rate: DefaultDirectRateLimiter,
    refused: AtomicBool,
}

impl Counter {
    fn new(quota: Quota) -> Arc<Self> {
        Arc::new(Self { rate: RateLimiter::direct(quota), refused: AtomicBool::new(false) })
    }
}

/// The counters. Their number is bounded: the least recently used one makes room for another.
pub(crate) struct RateLimits {
    communities: Cache<CommunityId, Arc<Counter>>,
    callers: Cache<(CommunityId, Caller), Arc<Counter>>,
    community_quota: Quota,
    caller_quota: Quota,
    clock: DefaultClock,
}

impl RateLimits {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            communities: cache(COMMUNITIES),
            callers: cache(limits.callers),
            community_quota: quota(limits.community_per_second, limits.community_burst),
            caller_quota: quota(limits.caller_per_second, limits.caller_burst),
            clock: DefaultClock::default(),
        }
    }

    /// Counts one request. A caller over its own limit does not use up the community's.
    pub(crate) fn check(&self, community: CommunityId, caller: Option<&Caller>) -> Result<(), Refused> {
        if let Some(caller) = caller {
            let key = (community, caller.clone());
            let counter = self.callers.get_with(key, || Counter::new(self.caller_quota));
            self.count(Scope::Caller, &counter)?;
        }
        let counter = self.communities.get_with(community, || Counter::new(self.community_quota));
        self.count(Scope::Community, &counter)
    }

    fn count(&self, scope: Scope, counter: &Counter) -> Result<(), Refused> {
        let decision = counter.rate.check();
        metrics::rate_limit(scope, decision.is_ok());
        decision.map_err(|refused| Refused {
            scope,
            wait: refused.wait_time_from(self.clock.now()),
            first: !counter.refused.swap(true, Ordering::Relaxed),
        })
    }

    /// Shows how many communities and callers are remembered.
    pub(crate) fn report(&self) {
        metrics::rate_limit_counters(Scope::Community, self.communities.entry_count());
        metrics::rate_limit_counters(Scope::Caller, self.callers.entry_count());
    }

    /// Forgets a caller's counter, or with `None` the community's and all its callers'. Returns how many there were.
    pub(crate) fn clear(&self, community: CommunityId, caller: Option<&Caller>) -> u64 {
        let held: Vec<(CommunityId, Caller)> = match caller {
            Some(caller) => vec![(community, caller.clone())],
            None => self
                .callers
                .iter()
                .filter(|(key, _)| key.0 == community)
                .map(|(key, _)| (*key).clone())
                .collect(),
        };
        let callers = held.iter().filter(|key| self.callers.remove(*key).is_some()).count();
        let community = usize::from(caller.is_none() && self.communities.remove(&community).is_some());
        u64::try_from(callers.saturating_add(community)).unwrap_or(u64::MAX)
    }
}

/// By default a full cache refuses newcomers, whose counters would begin anew again and again.
fn cache<K: Hash + Eq + Send + Sync + 'static>(most: u64) -> Cache<K, Arc<Counter>> {
    Cache::builder().max_capacity(most).eviction_policy(EvictionPolicy::lru()).time_to_idle(IDLE).build()
}

fn quota(per_second: u32, burst: u32) -> Quota {
    let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn limits() -> RateLimits {
        RateLimits::new(Limits {
            community_per_second: 1,
            community_burst: 20,
            caller_per_second: 1,
            caller_burst: 5,
            callers: 100,
        })
    }

    fn community(n: u128) -> CommunityId {
        format!("{n:032x}").parse().unwrap()
    }

    #[test]
    fn a_caller_and_a_community_each_have_their_own() {
        let limits = limits();
        let (paul, leto) = (Caller::parse("paul").unwrap(), Caller::parse("leto").unwrap());
        for _ in 0..5 {
            limits.check(community(1), Some(&paul)).unwrap();
        }
        let refused = limits.check(community(1), Some(&paul)).unwrap_err();
        assert_eq!((refused.scope, refused.first), (Scope::Caller, true));
        assert!(!refused.wait.is_zero() && refused.wait <= Duration::from_secs(1));
        assert!(!limits.check(community(1), Some(&paul)).unwrap_err().first);
        limits.check(community(1), Some(&leto)).unwrap();
        limits.check(community(2), Some(&paul)).unwrap();
        for _ in 0..14 {
            limits.check(community(1), None).unwrap();
        }
        assert_eq!(limits.check(community(1), None).unwrap_err().scope, Scope::Community);
    }

    #[test]
    fn clearing_lets_in_again_and_counts() {
        let limits = limits();
        let paul = Caller::parse("paul").unwrap();
        while limits.check(community(1), Some(&paul)).is_ok() {}
        assert_eq!(limits.clear(community(2), Some(&paul)), 0);
        assert_eq!(limits.clear(community(1), Some(&paul)), 1);
        limits.check(community(1), Some(&paul)).unwrap();
        assert_eq!(limits.clear(community(1), None), 2);
    }

    #[test]
    fn who_asked_longest_ago_makes_room_for_who_is_new() {
        let limits = limits();
        for _ in 0..20 {
            for number in 0..100 {
                let caller = Caller::parse(format!("busy {number}")).unwrap();
                let _ = limits.check(community(number), Some(&caller));
            }
            limits.callers.run_pending_tasks();
        }
        let new = Caller::parse("new").unwrap();
        for _ in 0..5 {
            limits.check(community(1000), Some(&new)).unwrap();
            limits.callers.run_pending_tasks();
        }
        assert_eq!(limits.check(community(1000), Some(&new)).unwrap_err().scope, Scope::Caller);
    }

    /// Of tests that measure the process's memory, one at a time.
    pub(crate) static MEMORY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    /// The process's memory, in bytes.
    pub(crate) fn resident() -> u64 {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    #[test]
    fn ever_new_callers_take_bounded_memory() {
        let _alone = MEMORY.blocking_lock();
        let limits = limits();
        let ask = |from: u128, to: u128| {
            for n in from..to {
                // Long ones, in ever new communities.
                let caller = Caller::parse(format!("{n:0>128}")).unwrap();
                let _ = limits.check(community(n / 2), Some(&caller));
            }
        };
        ask(0, 25_000);
        let before = resident();
        ask(25_000, 125_000);
        let grown = resident().saturating_sub(before);
        // Kept, the callers alone would take about 30 MiB.
        assert!(grown < 12 << 20, "{grown} bytes more");
        limits.callers.run_pending_tasks();
        limits.communities.run_pending_tasks();
        assert!(limits.callers.entry_count() <= 100 && limits.communities.entry_count() <= COMMUNITIES);
    }
}
