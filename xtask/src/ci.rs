//! Every check that a change must pass, one after the other, and a table of their verdicts.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::Result;
use xtask::tool;

use crate::verdict::{self, Verdict, step};
use crate::{cargo, documentation, manifests, observability, runbook, scan, test};

const RUSTSEC: &str = "https://github.com/RustSec/advisory-db";
/// Names a clone of the RustSec database, for a machine that does not reach it.
const SNAPSHOT: &str = "MUSTER_ADVISORY_DB";

/// Runs every step, also after one that failed; fails when any did.
pub(crate) async fn run() -> Result<Verdict> {
    let fmt = &mut cargo::cargo(&["fmt", "--all", "--check"]);
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    let clippy = &mut cargo::cargo(&clippy);
    let doc = &mut cargo::cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let mut rows = vec![
        step("formatting", cargo::passes(fmt)).await,
        step("clippy", cargo::passes(clippy)).await,
        step("tests", async { Ok(Verdict::of(test::tests(&[]).await?.success())) }).await,
        step("documentation", cargo::passes(doc)).await,
        step("dependencies: bans, licences, sources", deny(&["bans", "licenses", "sources"])).await,
        step("dependencies: advisories", advisories()).await,
        step("manifests", manifests::check()).await,
        step("alerts and dashboard", observability::check()).await,
        step("documents: what they name", documentation::check(false)).await,
        step("documents: runbooks", runbook::check(false)).await,
    ];
    for scan in ["exceptions", "dockerfile", "workflows", "workflow-syntax", "workflow-gates"] {
        rows.push(step(scan, async { scan::one(scan, &cargo::root()) }).await);
    }
    // Where it counts, what did not run has failed.
    Ok(Verdict::of(verdict::together(&rows, ["step", "time"]) != Verdict::Failed))
}

async fn deny(checks: &[&str]) -> Result<Verdict> {
    cargo::passes(cargo::command(tool::find("cargo-deny")?.0, &["check"]).args(checks)).await
}

/// Checks against the RustSec database: as it is now, or else the newest snapshot at hand, whose date is shown.
async fn advisories() -> Result<Verdict> {
    let mut fetch = cargo::command(tool::find("cargo-deny")?.0, &["fetch", "db"]);
    if let Some(snapshot) = env::var_os(SNAPSHOT) {
        let from = format!("url.{}.insteadOf", Path::new(&snapshot).display());
        fetch.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", from).env("GIT_CONFIG_VALUE_0", RUSTSEC);
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
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    let kept = std::fs::read_dir(home?.join("advisory-dbs")).ok()?;
    let database = kept.flatten().map(|entry| entry.path()).find(|path| path.join(".git").exists())?;
    let mut git = cargo::command("git", &["log", "-1", "--format=%cd", "--date=short"]);
    let output = git.current_dir(database).output().await.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
