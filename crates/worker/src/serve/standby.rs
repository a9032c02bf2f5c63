//! Watches the standby that lists are read from. Nothing else waits for it.

use std::time::Duration;

use muster_messaging::log_budget::LogBudget;
use muster_storage::{StandbyState, Store};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics;

/// How many looks there are within the time that the standby may be behind, and the longest pause between two.
const LOOKS: u32 = 8;
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Lines a minute about a standby that comes and goes.
static LINES: LogBudget = LogBudget::new(10);

/// The task that watches, until this is dropped.
pub(crate) struct Watching(JoinHandle<()>);

impl Watching {
    /// `None` where there is no standby.
    pub(crate) fn start(store: &Store) -> Option<Self> {
        let pause = (store.standby()?.max_lag() / LOOKS).min(LONGEST_PAUSE);
        Some(Self(tokio::spawn(watch(store.clone(), pause))))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(store: Store, pause: Duration) {
    let Some(standby) = store.standby() else { return };
    let mut looks = interval(pause);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut in_use = None;
    loop {
        looks.tick().await;
        let state = standby.look().await;
        metrics::standby(&state);
        let is_in_use = matches!(state, StandbyState::InUse(_));
        if in_use.replace(is_in_use) != Some(is_in_use) {
            tell(&state);
        }
    }
}

fn tell(state: &StandbyState) {
    let Some(line) = LINES.line() else { return };
    let millis = |lag: &Duration| lag.as_secs_f64() * 1000.0;
    match state {
        StandbyState::InUse(lag) => {
            tracing::info!(
                standby.lag_ms = millis(lag),
                left_out = line.left_out,
                "lists are read from the standby"
            );
        }
        StandbyState::NotInUse { lag, why } => tracing::warn!(
            standby.lag_ms = lag.as_ref().map(millis),
            error = why,
            left_out = line.left_out,
            "lists are read from the primary: the standby is not fit"
        ),
    }
}
