//! Compares what is kept with what plain counting comes to.

use std::time::Instant;

use anyhow::{Context, Result};

use super::community::Community;
use super::database::{Database, Planner};
use super::limits::Limit;

const CHECKS: &str = include_str!("counts.sql");

/// Runs every check; answers each one's name and how many rows differ.
///
/// # Errors
/// When a check cannot be run.
pub(super) async fn differences(database: &Database) -> Result<Vec<(String, usize)>> {
    let client = database.connect(Planner::Free).await?;
    client.batch_execute("SET work_mem = '256MB'; SET jit = off").await?;
    let mut answers = Vec::new();
    for check in CHECKS.split("-- check ").skip(1) {
        let (name, sql) = check.split_once('\n').context("a check without SQL")?;
        let rows = client.query(sql.trim().trim_end_matches(';'), &[]).await;
        let rows = rows.with_context(|| format!("the check of {name} cannot be run"))?;
        for row in rows.iter().take(3) {
            println!("  {name}: {}", row.get::<_, String>(0));
        }
        answers.push((name.to_owned(), rows.len()));
    }
    Ok(answers)
}

/// Has the worker's `verify` compare everything of the community; the limits are on what it finds and how long it takes.
///
/// # Errors
/// When it cannot be run.
pub(super) async fn verify(community: &Community) -> Result<Vec<Limit>> {
    let store = community.store(2).await?;
    let started = Instant::now();
    let found = store.community(community.id).await?.verify(false).await?;
    let took = started.elapsed().as_secs_f64();
    println!("  {} members: everything compared in {took:.1} s", community.members);
    for drift in found.drifted.iter().take(3) {
        println!("  {}: {drift:?}", drift.what);
    }
    let drifted = f64::from(u32::try_from(found.drifted()).unwrap_or(u32::MAX));
    Ok(vec![
        Limit::at_most(format!("verify: values of {} members that drifted", community.members), drifted, 0.0),
        Limit::at_most(format!("verify: {} members, s", community.members), took, 120.0),
    ])
}
