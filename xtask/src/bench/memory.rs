//! The worker's memory: idle, and while many ask for the longest pages and events pour in; and how soon it is ready.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_nats::jetstream;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use futures_util::stream;
use muster_messaging::endpoint::Endpoint;
use serde::Serialize;

use super::community::Community;
use super::events::now;
use super::limits::Limit;
use super::mix::{Draw, Mix};

/// How many ask at once.
const CALLERS: usize = 64;
/// Events that pour in each second, at most.
const POURED_A_SECOND: u32 = 2000;
/// How long the worker is left alone before its idle memory is read.
const IDLE: Duration = Duration::from_secs(3);
/// Starts that are timed.
const STARTS: usize = 5;

/// What was measured; memory in MiB.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    ready_ms: f64,
    idle: u64,
    most: u64,
    /// The most in the second and in the last quarter of the time: flat is when they are alike.
    second_quarter: u64,
    last_quarter: u64,
    pages: u64,
    events: u64,
}

impl Memory {
    /// Its limits.
    pub(super) fn limits(&self) -> Vec<Limit> {
        let number = |mebibytes: u64| f64::from(u32::try_from(mebibytes).unwrap_or(u32::MAX));
        vec![
            Limit::at_most("worker: start to ready, ms", self.ready_ms, 500.0),
            Limit::at_most("worker: idle memory, MiB", number(self.idle), 32.0),
            Limit::at_most("worker: most memory under load, MiB", number(self.most), 96.0),
            Limit::at_most(
                "worker: memory of the last quarter / of the second",
                number(self.last_quarter) / number(self.second_quarter).max(1.0),
                1.1,
            ),
        ]
    }
}

/// Loads the worker for this long.
///
/// # Errors
/// When it does not start, or a request or an event fails.
pub(super) async fn measure(community: &Community, seconds: u64) -> Result<Memory> {
    let mut ready = Vec::new();
    for _ in 0..STARTS {
        let started = Instant::now();
        let worker = community.configuration.serve(&community.services)?;
        ready.push(started.elapsed().as_secs_f64() * 1000.0);
        worker.stop()?;
    }
    ready.sort_by(f64::total_cmp);
    let ready_ms = ready.get(STARTS / 2).copied().unwrap_or(f64::NAN);
    let worker = community.configuration.serve(&community.services)?;
    tokio::time::sleep(IDLE).await;
    let told = || worker.memory().context("the system does not tell a process's memory");
    let (idle, _) = told()?;
    let time = Duration::from_secs(seconds);
    let begun = Instant::now();
    let client = community.nats().await?;
    let subject = Endpoint::ProfilesRanked.subject(community.id);
    let asking = try_join_all((0..CALLERS).map(|_| async {
        let mut pages = 0_u64;
        while begun.elapsed() < time {
            let answer = client.request(subject.clone(), r#"{"limit":1000}"#.into()).await;
            answer.context("a page was not answered")?;
            pages += 1;
        }
        Ok::<_, anyhow::Error>(pages)
    }));
    let context = jetstream::new(community.nats().await?);
    let mut mix = Mix::new(5, Draw::Skewed, community.guild.as_str(), community.members, now() - 60_000);
    let pouring = async {
        let made = std::iter::from_fn(|| if begun.elapsed() < time { mix.next() } else { None });
        let context = &context;
        let mut sending = stream::iter(made)
            .map(|ready| async move {
                let sent = context.publish(ready.subject, ready.payload.into()).await;
                sent.context("an event was not sent")?.await.context("the stream did not take an event")
            })
            .buffered(64);
        let mut events = 0_u64;
        while let Some(taken) = sending.next().await {
            taken?;
            events += 1;
            // No faster than the stream's bound on bytes lets it for the whole time.
            let due = begun + Duration::from_secs(events) / POURED_A_SECOND;
            tokio::time::sleep_until(due.into()).await;
        }
        Ok::<_, anyhow::Error>(events)
    };
    let watching = async {
        let mut samples = Vec::new();
        while begun.elapsed() < time {
            samples.push(told()?.0);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok::<_, anyhow::Error>(samples)
    };
    let (pages, events, samples) = tokio::try_join!(asking, pouring, watching)?;
    let quarter = samples.len() / 4;
    let most_of = |from: usize| samples.iter().skip(from).take(quarter.max(1)).copied().max().unwrap_or(0);
    let (_, most) = told()?;
    worker.stop()?;
    Ok(Memory {
        ready_ms,
        idle,
        most,
        second_quarter: most_of(quarter),
        last_quarter: most_of(samples.len().saturating_sub(quarter)),
        pages: pages.iter().sum(),
        events,
    })
}
