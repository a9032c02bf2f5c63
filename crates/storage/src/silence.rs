//! Nodes of a cluster that do not answer, known by the shards that lie on them: what is asked of these must not take up the
//! sessions that the other nodes' communities need.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_domain::Shard;

use crate::error::{Error, SilentNode};

/// How long a query of a shard is waited for. One that is well takes milliseconds; new connections to a node are given up
/// after 1.5 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// How long a write goes on until its shard is asked for a sign of life beside it, and from one such question to the next.
pub(crate) const SLOW: Duration = Duration::from_millis(1500);
/// A node that fails sooner than this takes up nothing.
const SOON: Duration = Duration::from_secs(1);
/// How often one query is let through, to see whether there is an answer again.
const AGAIN: Duration = Duration::from_secs(1);

/// The shards that were silent when they were last asked.
#[derive(Debug, Default)]
pub(crate) struct Silence(Mutex<Silent>);

#[derive(Debug, Default)]
struct Silent {
    shards: BTreeSet<Shard>,
    tried: Option<Instant>,
}

impl Silence {
    /// Fails for a silent shard, but for one query of all of them a second.
    pub(crate) fn admit(&self, shard: Shard, now: Instant) -> Result<(), Error> {
        let mut silent = self.lock();
        if !silent.shards.contains(&shard) {
            return Ok(());
        }
        if silent.tried.is_some_and(|tried| now.duration_since(tried) < AGAIN) {
            return Err(SilentNode.into());
        }
        silent.tried = Some(now);
        Ok(())
    }

    pub(crate) fn holds(&self, shard: Shard) -> bool {
        self.lock().shards.contains(&shard)
    }

    /// Takes note of what came of a query.
    pub(crate) fn note<T>(&self, shard: Shard, result: &Result<T, Error>, took: Duration) {
        match result {
            Err(error) if error.is_of_a_node() => {
                if took >= SOON {
                    let mut silent = self.lock();
                    silent.shards.insert(shard);
                    silent.tried = Some(Instant::now());
                }
            }
            // The database itself is at fault, which says nothing of its nodes.
            Err(Error::Unavailable(_)) => {}
            _ => {
                let mut silent = self.lock();
                // The others of its node answer as well. Those of another node are found silent again.
                if silent.shards.contains(&shard) {
                    silent.shards.clear();
                }
            }
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
        assert!(silence.admit(first, now).is_ok(), "who fails at once takes up nothing");
        for shard in [first, second] {
            silence.note(shard, &silent(), PATIENCE);
        }
        let later = now + AGAIN * 2;
        assert!(silence.admit(first, now).is_err() && silence.admit(well, now).is_ok());
        assert!(silence.admit(first, later).is_ok());
        assert!(silence.admit(first, later).is_err() && silence.admit(second, later).is_err());
        silence.note(well, &Ok(()), SOON);
        assert!(silence.holds(first) && silence.holds(second));
        silence.note(second, &Ok(()), SOON);
        assert!(silence.admit(first, later).is_ok() && !silence.holds(second));
    }
}
