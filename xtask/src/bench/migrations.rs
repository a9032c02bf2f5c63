//! Migrations: each one timed on an empty database, and `muster-worker migrate` beside reads and writes of a full one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use muster_domain::PageLimit;
use muster_storage::Community as View;
use serde::Serialize;

use super::community::Community;
use super::limits::Limit;
use crate::cargo;

/// How often the full database is migrated while others read and write.
const RUNS: usize = 5;
/// The longest that a migration may take, and that anybody may wait beside one.
const LONGEST_MS: f64 = 1000.0;

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Migrations {
    /// Each migration's name and milliseconds.
    empty: Vec<(String, f64)>,
    /// `muster-worker migrate` on the full database, each run.
    full_ms: Vec<f64>,
    reads: usize,
    longest_read_ms: f64,
    writes: usize,
    longest_write_ms: f64,
}

impl Migrations {
    /// Its limits.
    pub(super) fn limits(&self) -> Vec<Limit> {
        let slowest = self.empty.iter().map(|(_, took)| *took).fold(0.0, f64::max);
        vec![
            Limit::at_most("migrations: slowest on an empty database, ms", slowest, LONGEST_MS),
            Limit::at_most("migrations: longest read beside one, ms", self.longest_read_ms, LONGEST_MS),
            Limit::at_most("migrations: longest write beside one, ms", self.longest_write_ms, LONGEST_MS),
        ]
    }
}

/// Measures both.
///
/// # Errors
/// When a migration, a read or a write fails.
pub(super) async fn measure(community: &Community) -> Result<Migrations> {
    let empty = one_by_one(community).await?;
    let store = community.store(4).await?;
    let view = store.community(community.id).await?;
    let page = view.profile_list_ranked(PageLimit::clamp(1), None).await?;
    let member = page.items.first().context("nobody is ranked")?.profile.profile_id;
    let ended = std::sync::atomic::AtomicBool::new(false);
    let going_on = || !ended.load(std::sync::atomic::Ordering::Relaxed);
    let migrating = async {
        let mut full_ms = Vec::new();
        for _ in 0..RUNS {
            let started = Instant::now();
            let output = community.configuration.run("migrate").await;
            full_ms.push(ms(started.elapsed()));
            // Readers and writers stop when this one fails, too.
            let output = output.inspect_err(|_| ended.store(true, std::sync::atomic::Ordering::Relaxed))?;
            if !output.status.success() {
                ended.store(true, std::sync::atomic::Ordering::Relaxed);
                anyhow::bail!("migrate fails: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, anyhow::Error>(full_ms)
    };
    let reading = async {
        let mut times = Vec::new();
        while going_on() {
            times.push(timed(read(&view)).await?);
        }
        Ok::<_, anyhow::Error>(times)
    };
    let writing = async {
        let mut times = Vec::new();
        while going_on() {
            times.push(timed(async { Ok(view.profile_hide(member).await.map(drop)?) }).await?);
            times.push(timed(async { Ok(view.profile_show(member).await.map(drop)?) }).await?);
        }
        Ok::<_, anyhow::Error>(times)
    };
    let (full_ms, reads, writes) = tokio::try_join!(migrating, reading, writing)?;
    let longest = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    Ok(Migrations {
        empty,
        full_ms,
        reads: reads.len(),
        longest_read_ms: longest(&reads),
        writes: writes.len(),
        longest_write_ms: longest(&writes),
    })
}

async fn read(view: &View) -> Result<()> {
    view.profile_list_ranked(PageLimit::clamp(100), None).await?;
    view.stats().await?;
    Ok(())
}

async fn timed(work: impl Future<Output = Result<()>>) -> Result<f64> {
    let started = Instant::now();
    work.await?;
    Ok(ms(started.elapsed()))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Applies each migration by itself to a database of its own in the community's cluster.
async fn one_by_one(community: &Community) -> Result<Vec<(String, f64)>> {
    let directory = cargo::root().join("crates/storage/migrations");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        let path = entry?.path();
        names.extend(path.is_dir().then_some(path));
    }
    names.sort();
    ensure!(!names.is_empty(), "there are no migrations in {}", directory.display());
    let client = community.database.create("migrated").await?;
    let mut times = Vec::new();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let sql = std::fs::read_to_string(path.join("up.sql"))?;
        let started = Instant::now();
        let applied = client.batch_execute(&format!("BEGIN;\n{sql}\n;COMMIT")).await;
        applied.with_context(|| format!("migration {name} fails"))?;
        times.push((name, ms(started.elapsed())));
    }
    Ok(times)
}
