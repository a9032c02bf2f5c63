//! Looks from time to time which events the stream dropped before they were applied, and whether its settings changed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::durable::Durable;
use super::error::ConsumerError;
use super::fitness::{Finding, judge_consumer, judge_events, outlives_ids};
use super::losses::Stored;
use super::outcome::ConsumerEvent;
use super::shared_queue::SharedQueue;
use super::subjects::EVENTS;

/// How often gaps are compared with the stream; without a gap, only every so many times.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const CHECK_WITHOUT_GAPS_EVERY: u32 = 5;
/// How many deleted sequences within the stream are asked for: the broker tells all of them at once, eight bytes or more each.
const MAX_DELETED: u64 = 100_000;
/// How often losses are logged while there are more and more.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// What the checks have seen so far.
#[derive(Default)]
struct LossWatch {
    reconnects: u64,
    /// The stream's first sequence, and how many above it were deleted.
    stored: (u64, u64),
    /// Lost events that were not logged yet, and when some were logged last.
    unlogged: u64,
    logged: Option<Instant>,
    /// Settings that can lose events; `None` before the first check.
    unfit: Option<Vec<String>>,
}

/// Counts and logs losses until the stream turns out to be another: acknowledgements would go to events of that one.
pub(super) async fn watch_losses(durable: &Durable, queue: &SharedQueue) -> ConsumerError {
    let mut ticks = interval(CHECK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = LossWatch::default();
    for round in (0..CHECK_WITHOUT_GAPS_EVERY).cycle() {
        ticks.tick().await;
        if round > 0 && !durable.losses.has_gaps() {
            continue;
        }
        match watch.check(durable, queue).await {
            Ok(Some(lost)) => watch.report(durable, lost),
            Ok(None) => break,
            Err(error) => tracing::debug!(error = %error, "the stream could not be checked for losses"),
        }
    }
    ConsumerError::StreamReplaced
}

impl LossWatch {
    /// Returns how many lost events were found; `None` if the stream is another than the one that was opened.
    async fn check(
        &mut self,
        durable: &Durable,
        queue: &SharedQueue,
    ) -> Result<Option<u64>, async_nats::Error> {
        let losses = &durable.losses;
        let reconnects = durable.connection.counts().reconnects;
        if std::mem::replace(&mut self.reconnects, reconnects) != reconnects {
            losses.forget_position();
        }
        // In this order: what the stream had dropped before the consumer is asked, the consumer can no longer deliver.
        let stream = durable.context.get_stream(EVENTS).await?;
        let info = stream.cached_info();
        if info.created != durable.stream_created {
            return Ok(None);
        }
        let may_repeat = outlives_ids(info.config.max_age, durable.config.remember);
        durable.may_repeat_forgotten.store(may_repeat, Ordering::Relaxed);
        let consumer = durable.consumer.get_info().await?;
        let mut findings = judge_events(&info.config, durable.config.remember);
        findings.extend(judge_consumer(&durable.config.durable, &consumer.config));
        self.check_settings(&findings);
        let delivered = consumer.delivered;
        let first = info.state.first_sequence;
        losses.consumer_at(delivered.consumer_sequence, delivered.stream_sequence, first);

        let gaps = losses.take_gaps();
        let deleted = info.state.deleted_count.unwrap_or(0);
        let stored = (first, deleted);
        if gaps.is_empty() && std::mem::replace(&mut self.stored, stored) == stored {
            return Ok(Some(0));
        }
        // Asked after the gaps were seen; with the list of deleted sequences only if there are any, and not too many to hold: then
        // those below the first sequence count alone.
        let with_deleted = (1..=MAX_DELETED).contains(&deleted);
        let info = match stream.info_builder().with_deleted(with_deleted).fetch().await {
            Ok(info) => info.info,
            Err(error) => {
                losses.put_back(gaps);
                self.stored = (0, 0);
                return Err(error.into());
            }
        };
        let mut deleted = info.state.deleted.unwrap_or_default();
        deleted.sort_unstable();
        let stored = Stored { first: info.state.first_sequence, deleted };
        let last_elsewhere = losses.last_elsewhere();
        let deferred = queue.lock().forget_deleted(
            durable.config.ack_wait,
            |sequence| stored.lacks(sequence),
            // If another reader got deliveries since the broker took it back, it may have this one, too.
            |until| last_elsewhere.is_none_or(|elsewhere| elsewhere <= until),
        );
        Ok(Some(losses.count(&gaps, &stored, deferred)))
    }

    /// Reports and logs lost events: the first at once, then from time to time.
    fn report(&mut self, durable: &Durable, lost: u64) {
        if lost > 0 {
            (durable.config.observe)(&ConsumerEvent::Dropped { events: lost });
            self.unlogged = self.unlogged.saturating_add(lost);
        }
        if self.unlogged > 0 && self.logged.is_none_or(|logged| logged.elapsed() >= LOG_INTERVAL) {
            tracing::error!(
                events = self.unlogged,
                since_start = durable.losses.total(),
                "the stream EVENTS dropped events before they were applied: they are lost to Muster"
            );
            (self.unlogged, self.logged) = (0, Some(Instant::now()));
        }
    }

    /// Logs when the settings of the stream or of its consumer become able to lose events, and when they no longer are.
    fn check_settings(&mut self, findings: &[Finding]) {
        let unfit: Vec<String> = findings.iter().filter(|it| it.is_unfit()).map(Finding::to_string).collect();
        let before = self.unfit.replace(unfit.clone());
        // Those at the start were logged there.
        if before.as_ref().is_some_and(|before| *before != unfit) {
            match unfit.is_empty() {
                true => {
                    tracing::info!("the settings of the stream EVENTS and of its consumer are in order again")
                }
                false => tracing::error!(
                    settings = unfit.join("; "),
                    "the stream EVENTS or its consumer was changed and can lose events"
                ),
            }
        }
    }
}
