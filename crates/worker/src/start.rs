//! Waiting for what a start needs: servers that come later, a schema that is applied meanwhile, credentials that are made by
//! the same start. The order in which a deployment starts things does not matter.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::failure::{Failure, Patience};

/// The first pause between two attempts, and the longest: each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a server that refuses is tried again. A user or a certificate may be made a moment later, but more often the
/// secret is wrong, and a client that keeps trying a wrong one is locked out.
const REFUSED: Duration = Duration::from_secs(30);
/// The interval of the log line while something is missing.
const SAY: Duration = Duration::from_secs(30);

/// Attempts until one succeeds, until one fails in a way that waiting does not mend, or until `bound` is over. The first
/// attempt is always made.
///
/// # Errors
/// The last attempt's failure, within [`Failure::Waited`] if the start has waited.
pub(crate) async fn wait<T>(
    bound: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let started = Instant::now();
    let end = started + bound;
    let mut pending = match attempt().await {
        Ok(made) => return Ok(made),
        // What is wrong from the beginning is a mistake; what is wrong later is about to be changed.
        Err(failure) if failure.patience() == Patience::None => return Err(failure),
        Err(failure) => PendingStart::begin(failure, bound),
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let end = pending.refused_since.map_or(end, |since| end.min(since + REFUSED));
        if Instant::now() >= end {
            return Err(pending.given_up(started));
        }
        sleep(pause.min(end.saturating_duration_since(Instant::now()))).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        match timeout_at(end, attempt()).await {
            Ok(Ok(made)) => {
                tracing::info!(waited_ms = millis(started), "all dependencies are available");
                return Ok(made);
            }
            Ok(Err(failure)) if failure.is_final() => return Err(failure),
            Ok(Err(failure)) => pending.go_on(failure, started),
            Err(_) => return Err(pending.given_up(started)),
        }
    }
}

/// A start that waits: its last failure, and since when.
struct PendingStart {
    failure: Failure,
    /// Since when each attempt has been refused.
    refused_since: Option<Instant>,
    said: Instant,
}

impl PendingStart {
    fn begin(failure: Failure, bound: Duration) -> Self {
        let now = Instant::now();
        if !bound.is_zero() {
            tracing::warn!(error = failure.chain(), wait_ms = bound.as_millis(), "waiting for a dependency");
        }
        let refused_since = (failure.patience() == Patience::Short).then_some(now);
        Self { failure, refused_since, said: now }
    }

    fn go_on(&mut self, failure: Failure, started: Instant) {
        let now = Instant::now();
        let refused = failure.patience() == Patience::Short;
        let other = refused != self.refused_since.is_some();
        self.refused_since = refused.then(|| self.refused_since.unwrap_or(now));
        if other || now.saturating_duration_since(self.said) >= SAY {
            self.said = now;
            tracing::warn!(
                error = failure.chain(),
                waited_ms = millis(started),
                "a dependency is still missing"
            );
        }
        self.failure = failure;
    }

    fn given_up(self, started: Instant) -> Failure {
        let waited = started.elapsed();
        if waited < FIRST_PAUSE {
            return self.failure;
        }
        Failure::Waited { seconds: waited.as_secs(), failure: Box::new(self.failure) }
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
