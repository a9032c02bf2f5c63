//! Every check that a change must pass, one after the other, and a table of their verdicts.

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{Table, presets};
use xtask::{Verdict, tool};

use crate::{cargo, documentation, manifests, observability, runbook, scan, test};

const RUSTSEC: &str = "https://github.com/RustSec/advisory-db";
/// Names a clone of the RustSec database, for a machine that does not reach it.
const SNAPSHOT: &str = "MUSTER_ADVISORY_DB";

/// Runs every step, also after one that failed; fails when any did.
pub(crate) async fn run() -> Result<ExitCode> {
    let mut steps = Steps::default();
    steps.run("formatting", cargo::passes(&["fmt", "--all", "--check"])).await;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    steps.run("clippy", cargo::passes(&clippy)).await;
    steps.run("tests", async { Ok(Verdict::of(test::tests(&[]).await?.success())) }).await;
    steps.run("documentation", documents()).await;
    steps.run("dependencies: bans, licences, sources", deny(&["bans", "licenses", "sources"])).await;
    steps.run("dependencies: advisories", advisories()).await;
    steps.run("manifests", manifests::check()).await;
    steps.run("alerts and dashboard", observability::check()).await;
    steps.run("documents: what they name", documentation::check(false)).await;
    steps.run("documents: runbooks", runbook::check(false)).await;
    for (name, scan) in [
        ("exceptions: reason and expiry", "exceptions"),
        ("Dockerfile: Hadolint", "dockerfile"),
        ("workflows: zizmor", "workflows"),
        ("workflows: actionlint", "workflow-syntax"),
        ("workflows: gates", "workflow-gates"),
    ] {
        steps.run(name, async { Ok(scan::one(scan, &cargo::root())?.1) }).await;
    }
    Ok(steps.end())
}

#[derive(Default)]
struct Steps(Vec<(&'static str, Verdict, Duration)>);

impl Steps {
    async fn run(&mut self, name: &'static str, check: impl Future<Output = Result<Verdict>>) {
        println!("\n==> {name}");
        let started = Instant::now();
        let verdict = check.await.unwrap_or_else(|error| {
            println!("error: {error:#}");
            Verdict::Failed
        });
        self.0.push((name, verdict.enforced(), started.elapsed()));
    }

    fn end(self) -> ExitCode {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["step", "verdict", "time"]);
        for (name, verdict, time) in &self.0 {
            table.add_row([(*name).to_owned(), verdict.to_string(), format!("{:.1} s", time.as_secs_f64())]);
        }
        println!("\n{table}");
        for (name, ..) in self.0.iter().filter(|(_, verdict, _)| *verdict == Verdict::NotRun) {
            println!("NOT RUN: {name}. It did not pass; run it where what it needs can be fetched.");
        }
        let failed = self.0.iter().any(|(_, verdict, _)| *verdict == Verdict::Failed);
        if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

async fn documents() -> Result<Verdict> {
    let mut doc = cargo::command(cargo::program(), &["doc", "--workspace", "--no-deps", "--locked"]);
    Ok(Verdict::of(cargo::run(doc.env("RUSTDOCFLAGS", "-D warnings")).await?.success()))
}

async fn deny(checks: &[&str]) -> Result<Verdict> {
    let mut deny = cargo::command(tool::find("cargo-deny")?.program, &["check"]);
    Ok(Verdict::of(cargo::run(deny.args(checks)).await?.success()))
}

/// Checks against the RustSec database: as it is now, or else the newest snapshot at hand, whose date is shown.
async fn advisories() -> Result<Verdict> {
    let mut fetch = cargo::command(tool::find("cargo-deny")?.program, &["fetch", "db"]);
    if let Some(snapshot) = env::var_os(SNAPSHOT) {
        let from = format!("url.{}.insteadOf", Path::new(&snapshot).display());
        fetch
            .envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_VALUE_0", RUSTSEC)])
            .env("GIT_CONFIG_KEY_0", from);
    }
    let is_fetched = cargo::run(&mut fetch).await?.success();
    let Some(date) = database_date().await else {
        println!("there is no RustSec database: name a clone of {RUSTSEC} in {SNAPSHOT}");
        return Ok(Verdict::NotRun);
    };
    println!("the RustSec database is of {date}");
    // An old database is not enough where the verdict counts.
    if !is_fetched && Verdict::NotRun.enforced() == Verdict::Failed {
        println!("it could not be fetched now");
        return Ok(Verdict::Failed);
    }
    deny(&["--disable-fetch", "advisories"]).await
}

/// When the database that cargo-deny keeps was last changed.
async fn database_date() -> Option<String> {
    let cargo_home =
        env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))?;
    let kept = std::fs::read_dir(cargo_home.join("advisory-dbs")).ok()?;
    let database = kept.flatten().map(|entry| entry.path()).find(|path| path.join(".git").exists())?;
    let mut git = cargo::command("git", &["log", "-1", "--format=%cd", "--date=short"]);
    let output = git.current_dir(database).output().await.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
