//! The worker's memory: idle, and while many ask for the longest pages and events arrive.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::try_join_all;
use muster_messaging::api::{Endpoint, profiles};
use serde_json::json;

use super::load::Community;
use super::report::{Limit, Measured, float};
use super::seed;

/// How many ask at once.
const CALLERS: usize = 64;
/// Events in a tenth of a second.
const EVENTS: usize = 200;

/// Loads the worker for so long.
pub(super) async fn measure(community: &Community, time: Duration) -> Result<Measured> {
    let begun = Instant::now();
    let worker = community.configuration.serve(&community.services)?;
    let ready_ms = begun.elapsed().as_secs_f64() * 1000.0;
    // Until it is idle.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let memory = || worker.memory().context("the system does not tell a process's memory");
    let (idle, _) = memory()?;
    let begun = Instant::now();
    let subject = profiles::Ranked::DESCRIPTION.subject(community.id().await?);
    let asking = try_join_all((0..CALLERS).map(|_| async {
        let mut pages = 0;
        while begun.elapsed() < time {
            // So many may be too many for the database, and then some are told to ask again.
            pages += u64::from(community.ask(subject.clone(), r#"{"limit":1000}"#.into()).await.is_ok());
        }
        Ok(pages)
    }));
    let publishing = async {
        let mut events = 0;
        let mut mix = seed::mix(5, seed::SKEWED, community.members)?;
        // No faster than the stream's bound on bytes lets it for the whole time.
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        while begun.elapsed() < time {
            ticks.tick().await;
            events += seed::publish(&community.nats, mix.by_ref().take(EVENTS)).await?;
        }
        Ok(events)
    };
    let watching = async {
        let mut samples = Vec::new();
        while begun.elapsed() < time {
            samples.push(memory()?.0);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, anyhow::Error>(samples)
    };
    let (pages, events, samples) = tokio::try_join!(asking, publishing, watching)?;
    let (_, most) = memory()?;
    community.applied(0, &worker).await?;
    worker.stop()?;
    let pages: u64 = pages.iter().sum();
    println!(
        "  ready {ready_ms:.0} ms after its start; idle {idle} MiB, at most {most} MiB under {pages} pages and {events} events"
    );
    let quarters: Vec<f64> = samples
        .chunks(samples.len().div_ceil(4).max(1))
        .map(|quarter| float(quarter.iter().max().map_or(0, |most| *most)))
        .collect();
    // Memory that does not grow is no higher in the last quarter of the time than in the second.
    let growth = if let [_, second, _, last] = quarters.as_slice() { last / second } else { f64::NAN };
    let limits = vec![
        Limit::new("worker: idle memory, MiB", float(idle), 32.0),
        Limit::new("worker: most memory under load, MiB", float(most), 96.0),
        Limit::new("worker: memory of the last quarter / of the second", growth, 1.1),
    ];
    let figures = json!({"ready_ms": ready_ms, "idle": idle, "most": most, "pages": pages, "events": events, "quarters": quarters});
    let bars =
        (1..).zip(&quarters).map(|(quarter, most)| (format!("quarter {quarter} of the time"), vec![*most]));
    let (title, bars) = ("The worker's memory under load, MiB at most".to_owned(), bars.collect());
    Ok(Measured { limits, figures, title, bars })
}
