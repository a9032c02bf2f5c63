//! Whether events can be read at all. The connection may stand while the stream or its consumer has no leader, or a permission is gone.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long reading may fail before it counts: a new leader is elected sooner.
const LASTING: Duration = Duration::from_secs(15);
/// How often it is logged while it lasts.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What became of the last attempts to read.
#[derive(Debug, Default)]
pub(super) struct Reading(Mutex<Option<Failing>>);

#[derive(Debug)]
struct Failing {
    since: Instant,
    logged: Option<Instant>,
}

impl Reading {
    /// Whether events are read, or were until a moment ago.
    pub(super) fn is_well(&self) -> bool {
        self.lock().as_ref().is_none_or(|failing| failing.since.elapsed() < LASTING)
    }

    /// The broker had events, or said that it has none.
    pub(super) fn succeeded(&self) {
        if let Some(Failing { since, logged: Some(_) }) = self.lock().take() {
            tracing::info!(lasted_ms = since.elapsed().as_secs_f64() * 1000.0, "events are read again");
        }
    }

    /// It did not answer, or refused.
    pub(super) fn failed(&self, cause: &dyn Display) {
        let now = Instant::now();
        let mut failing = self.lock();
        let failing = failing.get_or_insert(Failing { since: now, logged: None });
        let is_due = failing.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_INTERVAL);
        if now.duration_since(failing.since) >= LASTING && is_due {
            failing.logged = Some(now);
            tracing::error!(
                error = %cause,
                "no events can be read: check that the stream EVENTS and its consumer have a leader, and this user's permissions"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Failing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reading_that_fails_for_long_is_not_well_until_it_succeeds() {
        let reading = Reading::default();
        reading.failed(&"no answer");
        assert!(reading.is_well(), "for a moment");
        tokio::time::advance(LASTING).await;
        reading.failed(&"no answer");
        assert!(!reading.is_well());
        reading.succeeded();
        assert!(reading.is_well());
        reading.failed(&"no answer");
        assert!(reading.is_well(), "it is counted anew");
    }
}
