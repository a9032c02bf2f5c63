//! Compares what is kept with what plain counting comes to.

use anyhow::{Context, Result};

use super::database::{Database, Planner};

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
