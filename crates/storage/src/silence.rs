//! Nodes of a cluster that do not answer, known by the shards that lie on them: what is asked of these must not take up the
//! sessions that the other nodes' communities need.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_domain::Shard;

use crate::error::{Error, SilentNode};

/// How long a query of a shard is waited for. One that is well takes milliseconds; new connections to a node are given up
/// after 1.5 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// How long a write goes on until its shard is asked for a sign of life beside it, and from one such question to the next.
pub(crate) const SLOW: Duration = Duration::from_millis(1500);
/// How many connections there are for such questions, beside the pool that those who wait may have taken up.
pub(crate) const PINGS: usize = 2;
/// A node that fails sooner than this takes up nothing.
const SOON: Duration = Duration::from_secs(1);
/// How often one query of all silent shards is let through, to see whether there is an answer again.
const AGAIN: Duration = Duration::from_secs(1);

/// The shards whose node gave no sign of life when it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<Silent>);

#[derive(Debug, Default)]
struct Silent {
    /// Each with when it was last tried.
    shards: BTreeMap<Shard, Instant>,
    tried: Option<Instant>,
}

impl Silence {
    /// Fails for a silent shard, but for one query a second: of the shard that was not tried for longest, or if nobody
    /// asks for that, of any.
    pub(crate) fn admit(&self, shard: Shard, now: Instant) -> Result<(), Error> {
        let mut silent = self.lock();
        let Some(last) = silent.shards.get(&shard).copied() else { return Ok(()) };
        let since = silent.tried.map_or(Duration::MAX, |tried| now.saturating_duration_since(tried));
        let is_next = silent.shards.values().all(|other| *other >= last);
        if since < AGAIN || !is_next && since < AGAIN.saturating_mul(2) {
            return Err(SilentNode.into());
        }
        silent.tried = Some(now);
        silent.shards.insert(shard, now);
        Ok(())
    }

    pub(crate) fn holds(&self, shard: Shard) -> bool {
        self.lock().shards.contains_key(&shard)
    }

    /// Takes note of what came of a query. That it took long says nothing by itself: it may have waited for a lock.
    pub(crate) fn note<T>(&self, shard: Shard, result: &Result<T, Error>, took: Duration) {
        match result {
            Ok(_) => {
                let mut silent = self.lock();
                // The others of its node answer as well. Those of another node are found silent again.
                if silent.shards.contains_key(&shard) {
                    silent.shards.clear();
                }
            }
            Err(error) if took >= SOON && error.is_of_a_node() => {
                let mut silent = self.lock();
                let now = Instant::now();
                silent.shards.entry(shard).or_insert(now);
                silent.tried.get_or_insert(now);
            }
            Err(_) => {}
        }
    }

    // A panic with the lock held leaves a consistent state.
    fn lock(&self) -> MutexGuard<'_, Silent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_shard_is_asked_once_a_second_until_one_answers() {
        let (silence, now) = (Silence::default(), Instant::now());
        let mut shards = Shard::all();
        let [first, second, well] = [(); 3].map(|()| shards.next().unwrap());
        let silent = || Err::<(), Error>(SilentNode.into());
        silence.note(first, &silent(), Duration::from_millis(10));
        silence.note(first, &Err::<(), Error>(Error::Unavailable("too slow".into())), PATIENCE);
        assert!(
            silence.admit(first, now).is_ok(),
            "who fails at once takes up nothing, and a lock is no silence"
        );
        for shard in [first, second] {
            silence.note(shard, &silent(), PATIENCE);
        }
        let is_admitted = |shard, seconds| silence.admit(shard, now + AGAIN * seconds).is_ok();
        assert!(!is_admitted(first, 0) && is_admitted(well, 0));
        assert!(is_admitted(first, 2));
        assert!(!is_admitted(first, 2) && !is_admitted(second, 2));
        assert!(!is_admitted(first, 3) && is_admitted(second, 3), "each has its turn");
        assert!(!is_admitted(second, 4) && is_admitted(second, 5), "nobody asks for the other");
        silence.note(well, &Ok(()), SOON);
        assert!(silence.holds(first) && silence.holds(second));
        silence.note(second, &Ok(()), SOON);
        assert!(is_admitted(first, 5) && !silence.holds(second));
    }
}
