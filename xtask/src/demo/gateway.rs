use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::stream::{self, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use muster_messaging::client::EventPublisher;

use super::community::{GatewayEvent, count};
use xtask::worker::{EventCounts, Worker};

/// How long the worker may stand still while events wait.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Publishes events as the chat gateway does, in their order, and waits until the worker has applied all of them.
pub(super) async fn publish(
    publisher: &EventPublisher,
    worker: &Worker,
    events: Vec<GatewayEvent>,
) -> Result<()> {
    let total = count(events.len());
    let before = worker.event_counts()?;
    let bars = indicatif::MultiProgress::new();
    let published = bars.add(bar(total, "published")?);
    let applied = bars.add(bar(total, "applied")?);
    let started = Instant::now();
    let publishing = async {
        let mut sending = stream::iter(
            events
                .into_iter()
                .map(|event| publisher.publish_raw(format!("events.{}", event.event_type), event.envelope)),
        )
        .buffered(EventPublisher::MAX_IN_FLIGHT);
        while let Some(taken) = sending.next().await {
            taken.context("the stream did not take an event")?;
            published.inc(1);
        }
        published.finish();
        Ok::<_, anyhow::Error>(started.elapsed())
    };
    let applying = async {
        let base = before.applied();
        until(worker, |counts| {
            applied.set_position(counts.applied().saturating_sub(base));
            counts.applied() >= base + total
        })
        .await?;
        applied.finish();
        Ok(started.elapsed())
    };
    let (published_in, applied_in) = tokio::try_join!(publishing, applying)?;
    println!("published {total} events {}, applied {}", rate(total, published_in), rate(total, applied_in));
    Ok(())
}

/// Waits until the worker's counts answer to `reached`.
pub(super) async fn until(
    worker: &Worker,
    mut reached: impl FnMut(&EventCounts) -> bool,
) -> Result<EventCounts> {
    let mut last = worker.event_counts()?;
    let mut moved = Instant::now();
    while !reached(&last) {
        tokio::time::sleep(POLL).await;
        let counts = worker.event_counts()?;
        if counts != last {
            moved = Instant::now();
        }
        last = counts;
        if moved.elapsed() > PATIENCE {
            bail!(
                "the worker has stood still for {PATIENCE:?} at {last}; its log ends:\n{}",
                worker.log_tail()
            );
        }
    }
    Ok(last)
}

fn bar(total: u64, what: &'static str) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{prefix:>9} {wide_bar} {pos}/{len} {per_sec} {elapsed}")?;
    Ok(ProgressBar::new(total).with_style(style).with_prefix(what))
}

fn rate(number: u64, time: Duration) -> String {
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    format!("in {:.1} s ({} a second)", time.as_secs_f64(), number.saturating_mul(1000) / millis)
}
