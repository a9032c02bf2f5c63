//! The runbooks, run: every command of theirs in order against real servers, its stated outcome checked.
//!
//! A fenced block `sh` is run; the block `text` after it is what it must print, in which `…` within a line stands for any
//! text and `…` alone on a line for any number of lines. A block without one must print nothing. Every block must succeed.
//! `sh on a cluster` marks one that runs where there is a cluster, `sh not run here: <reason>` one that cannot run beside a
//! private PostgreSQL and NATS server.

mod block;
mod load;
mod setting;
mod shell;

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use xtask::Verdict;
use xtask::services::{postgres_server, prometheus_programs};

use crate::{cargo, observability};
use block::{Block, Kind};
use load::Load;
pub(crate) use setting::Setting;
pub(crate) use shell::Shell;

/// The runbooks, in the order in which they are run.
pub(crate) const RUNBOOKS: [&str; 3] =
    ["docs/runbooks/operations.md", "docs/runbooks/credential-rotation.md", "docs/runbooks/findings.md"];
/// During this one no request may fail.
const WITHOUT_DOWNTIME: &str = "docs/runbooks/credential-rotation.md";
/// What the commands use besides GNU's tools and what is started here.
const TOOLS: [&str; 7] = ["bash", "curl", "kubectl", "openssl", "pg_dump", "pg_restore", "psql"];
/// How long one block may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Over how long the dashboard's rates are taken: the whole run.
const RATE_INTERVAL: &str = "600s";

/// What `cargo xtask runbooks` takes.
#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Run the blocks that need a cluster, too, against the one that KUBECONFIG names: an empty one, since they apply, scale
    /// and delete in it.
    #[arg(long)]
    cluster: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    Ok(check(arguments).await?.into())
}

/// Runs every block of every runbook.
pub(crate) async fn check(arguments: &Arguments) -> Result<Verdict> {
    if arguments.cluster && env::var_os("KUBECONFIG").is_none_or(|file| file.is_empty()) {
        println!("NOT RUN: --cluster needs KUBECONFIG, the file that says how to reach the cluster");
        return Ok(Verdict::NotRun);
    }
    let root = cargo::root();
    let mut documents = Vec::new();
    for path in RUNBOOKS {
        let text = fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))?;
        documents.push((path, block::read(&text).with_context(|| path.to_owned())?));
    }
    let programs = match prometheus_programs() {
        Ok(programs) => programs,
        Err(error) => {
            println!("NOT RUN: {error:#}");
            return Ok(Verdict::NotRun);
        }
    };
    // A server that came as a wheel has not all of PostgreSQL's programs beside it.
    let beside = postgres_server()?.bin;
    let is_missing = |tool: &&str| which::which(tool).is_err() && !beside.join(tool).is_file();
    let missing: Vec<&str> = TOOLS.into_iter().filter(is_missing).collect();
    if !missing.is_empty() {
        println!("NOT RUN: the runbooks' commands need {}, not on this machine", missing.join(", "));
        return Ok(Verdict::NotRun);
    }
    let worker = cargo::build_worker().await?;
    let setting = Setting::new(&worker, 1, Some(&programs))?;
    let mut shell = setting.shell()?;
    let load = Load::start(&setting)?;
    let started = Instant::now();
    let (mut ran, mut missed, mut without_cluster) = (0_usize, 0_usize, 0_usize);
    for (path, blocks) in &documents {
        let before = load.seen();
        for block in blocks {
            match &block.kind {
                Kind::NotRunHere(reason) => {
                    missed += 1;
                    println!("not run here: {path}:{} {}: {reason}", block.line, block.section);
                    continue;
                }
                Kind::OnACluster if !arguments.cluster => {
                    without_cluster += 1;
                    continue;
                }
                Kind::Run | Kind::OnACluster => ran += 1,
            }
            if let Err(error) = one(&mut shell, block).await {
                println!("{path}:{} {}:\n{}", block.line, block.section, block.script.trim_end());
                println!("{error:#}");
                println!("FAILED: {ran} ran, the last of them as above; what follows was not reached");
                return Ok(Verdict::Failed);
            }
        }
        if *path == WITHOUT_DOWNTIME {
            let answered = load.answered_without_failure(before).with_context(|| format!("during {path}"))?;
            println!("{answered} requests were made and answered during {path}");
        }
    }
    let queries = every_panel_shows_something(&programs.promtool, setting.prometheus()?)?;
    println!(
        "{ran} ran, {missed} not run here, {without_cluster} left out for want of --cluster, in {:.1} s; {queries} queries of the dashboard have an answer",
        started.elapsed().as_secs_f64()
    );
    Ok(Verdict::Passed)
}

/// The commands of one section of a runbook that are run here.
pub(crate) fn section(runbook: &str, title: &str) -> Result<Vec<String>> {
    let blocks = block::read(runbook)?.into_iter();
    let of_it = blocks.filter(|block| block.section == title && block.kind == Kind::Run);
    let scripts: Vec<String> = of_it.map(|block| block.script).collect();
    ensure!(!scripts.is_empty(), "the runbook has no commands in a section {title:?}");
    Ok(scripts)
}

async fn one(shell: &mut Shell, block: &Block) -> Result<()> {
    let ran = shell.run(&block.script, PATIENCE).await?;
    ensure!(ran.succeeded, "it failed, having printed:\n{}", ran.printed);
    block::compare(block.outcome.as_deref().unwrap_or_default(), &ran.printed)
}

/// Every query of the dashboard has an answer, after a run that made use of everything.
fn every_panel_shows_something(promtool: &Path, prometheus: SocketAddr) -> Result<usize> {
    let queries = observability::panel_queries(&cargo::root(), RATE_INTERVAL)?;
    let mut empty = Vec::new();
    for (panel, query) in &queries {
        let mut command = Command::new(promtool);
        command.args(["query", "instant"]).arg(format!("http://{prometheus}")).arg(query);
        let output = command.output().context("cannot run promtool")?;
        ensure!(output.status.success(), "{panel}: {}", String::from_utf8_lossy(&output.stderr).trim());
        if output.stdout.trim_ascii().is_empty() {
            empty.push(format!("{panel}: {query}"));
        }
    }
    ensure!(!queries.is_empty(), "the dashboard has no queries");
    ensure!(empty.is_empty(), "these queries of the dashboard have no answer:\n{}", empty.join("\n"));
    Ok(queries.len())
}
