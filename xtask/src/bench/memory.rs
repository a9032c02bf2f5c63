//! The worker's memory: idle, and while many callers ask for the longest pages and events arrive.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use muster_messaging::api::{Endpoint, profiles};

use super::load::Community;
use super::report::{Limit, Measured, float};
use super::seed;

/// What is asked and published at once, again and again.
const CALLERS: usize = 64;
const EVENTS: usize = 1000;

/// Measures the worker under load for so long.
pub(super) async fn measure(community: &Community, time: Duration) -> Result<Measured> {
    let worker = community.configuration.serve(&community.services)?;
    let subject = profiles::Ranked::DESCRIPTION.subject(community.id().await?);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let memory = || worker.memory().context("the system does not tell a process's memory");
    let (idle, _) = memory()?;
    let (begun, mut samples, mut answered) = (Instant::now(), Vec::new(), 0);
    let mut mix = seed::mix(5, seed::SKEWED, community.members)?;
    while begun.elapsed() < time {
        let asking = (0..CALLERS).map(|_| community.ask(&subject, r#"{"limit":1000}"#));
        let publishing = community.publish(mix.by_ref().take(EVENTS));
        // Under this load the worker may refuse some requests.
        let (pages, published) = tokio::join!(join_all(asking), publishing);
        published?;
        answered += pages.iter().filter(|page| page.is_ok()).count();
        samples.push(float(memory()?.0));
    }
    let (_, most) = memory()?;
    worker.stop()?;
    let asked = samples.len() * CALLERS;
    ensure!(answered * 2 > asked, "{answered} of {asked} pages were answered: this is no load");
    let quarters = samples.chunks_exact((samples.len() / 4).max(1)).take(4);
    let quarters: Vec<f64> = quarters.map(|quarter| quarter.iter().copied().fold(0.0, f64::max)).collect();
    // Memory that does not grow is no higher in the last quarter of the time than in the second.
    let growth = if let [_, second, _, last] = quarters.as_slice() { last / second } else { f64::NAN };
    let limits = vec![
        Limit::new("worker: idle memory, MiB", float(idle), 32.0),
        Limit::new("worker: most memory under load, MiB", float(most), 96.0),
        Limit::new("worker: memory of the last quarter / of the second", growth, 1.1),
    ];
    let mut rows = vec![("idle".to_owned(), vec![float(idle)]), ("most".to_owned(), vec![float(most)])];
    rows.extend((1..).zip(quarters).map(|(place, most)| (format!("quarter {place}"), vec![most])));
    let title = "The worker's memory".to_owned();
    Ok(Measured { title, columns: vec!["MiB"], charted: rows.len(), rows, limits })
}
