//! Rate limits: requests a second of a community, and of one caller in it. Each replica counts for itself.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;
use muster_domain::CommunityId;
use muster_messaging::wire::query::Caller;

use crate::metrics;
use crate::settings::Limits;

/// How many communities are remembered.
const COMMUNITIES: u64 = 10_000;
/// A counter that was not asked for this long is full again, and need not be remembered.
const IDLE: Duration = Duration::from_mins(10);

/// Whose limit a request met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Community,
    Caller,
}

impl Scope {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Community => "community",
            Self::Caller => "caller",
        }
    }
}

/// The counters. Their number is bounded: beyond it the one that was asked for longest ago is forgotten.
pub(crate) struct RateLimits {
    communities: Cache<CommunityId, Arc<DefaultDirectRateLimiter>>,
    callers: Cache<(CommunityId, Caller), Arc<DefaultDirectRateLimiter>>,
    community_quota: Quota,
    caller_quota: Quota,
    clock: DefaultClock,
}

impl RateLimits {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            communities: Cache::builder().max_capacity(COMMUNITIES).time_to_idle(IDLE).build(),
            callers: Cache::builder()
                .max_capacity(limits.callers)
                .time_to_idle(IDLE)
                .support_invalidation_closures()
                .build(),
            community_quota: quota(limits.community_per_second, limits.community_burst),
            caller_quota: quota(limits.caller_per_second, limits.caller_burst),
            clock: DefaultClock::default(),
        }
    }

    /// Counts one request; refused, it says whose limit was met and when to ask again. A caller over its own limit does
    /// not use up the community's.
    pub(crate) fn check(
        &self,
        community: CommunityId,
        caller: Option<&Caller>,
    ) -> Result<(), (Scope, Duration)> {
        if let Some(caller) = caller {
            let key = (community, caller.clone());
            let counter = self.callers.get_with(key, || Arc::new(RateLimiter::direct(self.caller_quota)));
            self.count(Scope::Caller, &counter)?;
        }
        let counter =
            self.communities.get_with(community, || Arc::new(RateLimiter::direct(self.community_quota)));
        self.count(Scope::Community, &counter)
    }

    fn count(&self, scope: Scope, counter: &DefaultDirectRateLimiter) -> Result<(), (Scope, Duration)> {
        let decision = counter.check();
        metrics::rate_limit(scope, decision.is_ok());
        decision.map_err(|refused| (scope, refused.wait_time_from(self.clock.now())))
    }

    /// Shows how many communities and callers are remembered.
    pub(crate) fn report(&self) {
        metrics::rate_limit_counters(Scope::Community, self.communities.entry_count());
        metrics::rate_limit_counters(Scope::Caller, self.callers.entry_count());
    }

    /// Forgets a caller's counter, or with `None` the community's and all its callers'. Answers how many there were.
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

fn quota(per_second: u32, burst: u32) -> Quota {
    let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(at_least_one(per_second)).allow_burst(at_least_one(burst))
}

#[cfg(test)]
mod tests {
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
        let (scope, wait) = limits.check(community(1), Some(&paul)).unwrap_err();
        assert_eq!(scope, Scope::Caller);
        assert!(!wait.is_zero() && wait <= Duration::from_secs(1));
        limits.check(community(1), Some(&leto)).unwrap();
        limits.check(community(2), Some(&paul)).unwrap();
        for _ in 0..14 {
            limits.check(community(1), None).unwrap();
        }
        assert_eq!(limits.check(community(1), None).unwrap_err().0, Scope::Community);
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
    fn any_number_of_callers_is_held_in_bounds() {
        let limits = limits();
        for n in 0..10_000 {
            let caller = Caller::parse(format!("caller {n}")).unwrap();
            let _ = limits.check(community(n), Some(&caller));
        }
        limits.callers.run_pending_tasks();
        assert!(limits.callers.entry_count() <= 100);
    }
}
