//! Every check that a change must pass, one after the other, and a table of their verdicts.

use anyhow::Result;

use crate::verdict::{self, Verdict, step};
use crate::{cargo, documentation, manifests, observability, runbook, scan, test};

/// Each step, and what cargo is told where it is a command of cargo's own. infra/expected has the same list.
const STEPS: &str = include_str!("ci/steps");

/// Runs every step, also after one that failed; fails when any did.
pub(crate) async fn run() -> Result<Verdict> {
    let mut rows = Vec::new();
    for line in STEPS.lines() {
        let (name, command) = line.split_once(": ").unwrap_or((line, ""));
        rows.push(step(name, one(name, command)).await);
    }
    // Where it counts, what did not run has failed.
    Ok(Verdict::of(verdict::together(&rows, ["step", "time"]) != Verdict::Failed))
}

async fn one(name: &str, command: &str) -> Result<Verdict> {
    let words: Vec<&str> = command.split(' ').collect();
    match name {
        "tests" => Ok(Verdict::of(test::tests(&[]).await?.success())),
        "manifests" => manifests::check().await,
        "alerts and dashboard" => observability::check().await,
        "documents" => documentation::check(false).await,
        "runbooks" => runbook::check(false).await,
        scan if command.is_empty() => scan::one(scan, &cargo::root()),
        _ => cargo::passes(cargo::cargo(&words).env("RUSTDOCFLAGS", "-D warnings")).await,
    }
}
