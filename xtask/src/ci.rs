use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use comfy_table::{Table, presets};
use xtask::{pin, services};

use crate::{cargo, documentation, manifests, observability, runbook, scan, test};

/// What a change must pass, in this order. A step that fails does not keep the others from running.
const STEPS: [Step; 15] = [
    Step { name: "formatting", check: Check::Cargo(&["fmt", "--all", "--check"], None) },
    Step {
        name: "clippy",
        check: Check::Cargo(
            &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
            None,
        ),
    },
    Step { name: "tests", check: Check::Tests },
    Step {
        name: "documentation",
        check: Check::Cargo(
            &["doc", "--workspace", "--no-deps", "--locked"],
            Some(("RUSTDOCFLAGS", "-D warnings")),
        ),
    },
    Step {
        name: "dependencies: bans, licences, sources",
        check: Check::Deny(&["bans", "licenses", "sources"]),
    },
    Step { name: "dependencies: advisories", check: Check::Advisories },
    Step { name: "exceptions: reason and expiry", check: Check::Scan("exceptions") },
    Step { name: "manifests", check: Check::Manifests },
    Step { name: "alerts and dashboard", check: Check::Observability },
    Step { name: "documents: what they name", check: Check::Documentation },
    Step { name: "documents: runbooks", check: Check::Runbooks },
    Step { name: "Dockerfile: Hadolint", check: Check::Scan("dockerfile") },
    Step { name: "workflows: zizmor", check: Check::Scan("workflows") },
    Step { name: "workflows: actionlint", check: Check::Scan("workflow-syntax") },
    Step { name: "workflows: gates", check: Check::Scan("workflow-gates") },
];

const RUSTSEC: &str = "https://github.com/RustSec/advisory-db";
/// Names a clone of the RustSec database, for a machine that does not reach it.
const SNAPSHOT: &str = "MUSTER_ADVISORY_DB";

struct Step {
    name: &'static str,
    check: Check,
}

enum Check {
    /// A cargo command with at most one variable.
    Cargo(&'static [&'static str], Option<(&'static str, &'static str)>),
    /// `cargo xtask test`.
    Tests,
    /// These checks of cargo-deny.
    Deny(&'static [&'static str]),
    /// cargo-deny's check against the RustSec database, which it has to fetch.
    Advisories,
    /// `cargo xtask manifests`.
    Manifests,
    /// `cargo xtask observability`.
    Observability,
    /// `cargo xtask documentation`.
    Documentation,
    /// `cargo xtask runbooks`.
    Runbooks,
    /// `cargo xtask scan --only` this one.
    Scan(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Passed,
    Failed,
    /// It could not be done here, which is not a pass.
    NotRun,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::NotRun => "NOT RUN",
        })
    }
}

/// Runs every step; fails when any did.
pub(crate) async fn run() -> Result<ExitCode> {
    let mut verdicts = Vec::new();
    for step in &STEPS {
        println!("\n==> {}", step.name);
        let started = Instant::now();
        let verdict = match step.check.run().await {
            Ok(verdict) => verdict,
            Err(error) => {
                println!("error: {error:#}");
                Verdict::Failed
            }
        };
        verdicts.push((step.name, verdict, started.elapsed()));
    }
    println!("\n{}", table(&verdicts));
    for (name, ..) in verdicts.iter().filter(|(_, verdict, _)| *verdict == Verdict::NotRun) {
        println!("NOT RUN: {name}. It did not pass; run it where what it needs can be fetched.");
    }
    let failed = verdicts.iter().any(|(_, verdict, _)| *verdict == Verdict::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn table(verdicts: &[(&str, Verdict, Duration)]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["step", "verdict", "time"]);
    for (name, verdict, time) in verdicts {
        table.add_row([(*name).to_owned(), verdict.to_string(), format!("{:.1} s", time.as_secs_f64())]);
    }
    table
}

impl Check {
    async fn run(&self) -> Result<Verdict> {
        match self {
            Self::Cargo(arguments, variable) => {
                let mut command = cargo::command(cargo::program(), arguments);
                command.envs(*variable);
                verdict(cargo::run(&mut command).await?.success())
            }
            Self::Tests => verdict(test::tests(&[]).await? == 0),
            Self::Deny(checks) => {
                let mut command = cargo::command(cargo_deny().await?, &["check"]);
                verdict(cargo::run(command.args(*checks)).await?.success())
            }
            Self::Manifests => Ok(match manifests::check().await? {
                manifests::Outcome::Passed => Verdict::Passed,
                manifests::Outcome::Failed => Verdict::Failed,
                manifests::Outcome::NotRun => not_run(),
            }),
            Self::Observability => Ok(match observability::check().await? {
                observability::Outcome::Passed => Verdict::Passed,
                observability::Outcome::Failed => Verdict::Failed,
                observability::Outcome::NotRun => not_run(),
            }),
            Self::Documentation => verdict(documentation::check(&documentation::Arguments::default()).await?),
            Self::Runbooks => Ok(match runbook::check(&runbook::Arguments::default()).await? {
                runbook::Outcome::Passed => Verdict::Passed,
                runbook::Outcome::Failed => Verdict::Failed,
                runbook::Outcome::NotRun => not_run(),
            }),
            Self::Scan(scan) => Ok(match scan::one(scan, &cargo::root())?.1 {
                scan::Outcome::Passed => Verdict::Passed,
                scan::Outcome::Failed => Verdict::Failed,
                scan::Outcome::NotRun => not_run(),
            }),
            Self::Advisories => advisories().await,
        }
    }
}

/// Checks against the RustSec database: as it is now, or else the newest snapshot at hand, whose date is shown.
async fn advisories() -> Result<Verdict> {
    let deny = cargo_deny().await?;
    let mut fetch = cargo::command(&deny, &["fetch", "db"]);
    if let Some(snapshot) = env::var_os(SNAPSHOT) {
        let from = format!("url.{}.insteadOf", Path::new(&snapshot).display());
        fetch
            .envs([("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_VALUE_0", RUSTSEC)])
            .env("GIT_CONFIG_KEY_0", from);
    }
    let fetched = cargo::run(&mut fetch).await?.success();
    let date = database_date().await;
    match &date {
        Some(date) => println!("the RustSec database is of {date}"),
        None => println!("there is no RustSec database: name a clone of {RUSTSEC} in {SNAPSHOT}"),
    }
    // On the machine that decides, an old database is a failure.
    ensure!(fetched || !scan::decides(), "the RustSec advisory database could not be fetched");
    if date.is_none() {
        return Ok(not_run());
    }
    let mut command = cargo::command(deny, &["check", "--disable-fetch", "advisories"]);
    verdict(cargo::run(&mut command).await?.success())
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

/// On the machine that decides, what cannot be had is a failure.
fn not_run() -> Verdict {
    if scan::decides() { Verdict::Failed } else { Verdict::NotRun }
}

fn verdict(passed: bool) -> Result<Verdict> {
    Ok(if passed { Verdict::Passed } else { Verdict::Failed })
}

/// The pinned cargo-deny: from PATH if it is there in that version, else built into the cache once.
async fn cargo_deny() -> Result<PathBuf> {
    let pin = pin::crate_named("cargo-deny")?;
    if let Ok(found) = which::which(&pin.name) {
        let output = cargo::command(&found, &["--version"]).output().await?;
        if String::from_utf8_lossy(&output.stdout).split_whitespace().any(|word| word == pin.version) {
            return Ok(found);
        }
    }
    let kept = services::cache()?.join(format!("{}-{}", pin.name, pin.version));
    let program = kept.join("bin").join(&pin.name);
    if !program.is_file() {
        println!("building {} {} into {}: a few minutes, once", pin.name, pin.version, kept.display());
        let mut command =
            cargo::command(cargo::program(), &["install", "--locked", "--version", &pin.version]);
        command.arg("--root").arg(&kept).arg(&pin.name).env_remove("CARGO_TARGET_DIR");
        ensure!(cargo::run(&mut command).await?.success(), "cargo-deny does not build");
    }
    Ok(program)
}
