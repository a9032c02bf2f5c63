//! Measures Muster on communities of up to a million members, beside an ideal and another version, and holds it to limits.

mod events;
mod load;
mod read;
mod report;
mod seed;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::join_all;
use muster_messaging::api::{Endpoint, profiles};

use crate::cargo;
use load::Community;
use report::{Limit, Measured, float};

/// How many pages are asked for and events published at once, again and again, while memory is watched.
const CALLERS: usize = 64;
const EVENTS: usize = 1000;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The sizes of community.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000",
        value_parser = clap::value_parser!(i64).range(1000..=9_000_000))]
    members: Vec<i64>,
    /// What is measured.
    #[arg(long, value_delimiter = ',', default_value = "read,memory,events,verify",
        value_parser = ["read", "memory", "events", "verify"])]
    only: Vec<String>,
    /// A checkout of another version, whose worker is built, given the same events and measured by turns.
    #[arg(long, value_name = "CHECKOUT")]
    against: Option<PathBuf>,
    /// For how many seconds each question is asked.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// For how many seconds the worker's memory is watched under load.
    #[arg(long, default_value_t = 600)]
    memory_seconds: u64,
    /// How many events are applied in each row of the events' table.
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// Measures debug builds, for work on the benchmark itself: the figures say nothing, and go to target/bench.
    #[arg(long)]
    unoptimised: bool,
}

/// Measures; fails when a limit is missed.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) && !arguments.unoptimised {
        return cargo::rerun_optimised().await;
    }
    let mut communities = Vec::new();
    let checkouts = [("this", Some(cargo::root())), ("other", arguments.against.clone())];
    for (name, checkout) in checkouts.into_iter().filter_map(|(name, checkout)| Some((name, checkout?))) {
        let root = checkout.canonicalize().with_context(|| format!("no checkout {}", checkout.display()))?;
        let worker = build(&root, arguments).await?;
        for members in &arguments.members {
            communities.push(Community::start(name, &root, &worker, *members).await?);
        }
    }
    let largest = arguments.members.iter().max().context("no community")?;
    let largest: Vec<&Community> = communities.iter().filter(|of| of.members == *largest).collect();
    let this = *largest.first().context("no community")?;
    let directory = if arguments.unoptimised { "target/bench" } else { "docs/performance" };
    let directory = cargo::root().join(directory);
    std::fs::create_dir_all(&directory)?;
    let (mut limits, mut latest) = (Vec::new(), serde_json::Map::new());
    for part in &arguments.only {
        println!("== {part}");
        let measured = match part.as_str() {
            "read" => read::measure(&communities, Duration::from_secs(arguments.seconds)).await?,
            "memory" => memory(this, Duration::from_secs(arguments.memory_seconds)).await?,
            "events" => events::measure(&largest, arguments.events).await?,
            "verify" => verify(&communities).await?,
            _ => bail!("no such part: {part}"),
        };
        println!("{}", report::table(&measured.columns, &measured.rows));
        std::fs::write(directory.join(format!("{part}.svg")), report::chart(&measured))?;
        latest.insert(part.clone(), serde_json::to_value(&measured)?);
        limits.extend(measured.limits);
    }
    std::fs::write(directory.join("latest.json"), serde_json::to_vec_pretty(&latest)?)?;
    limits.sort_by_key(|limit| !limit.is_kept());
    let verdict = |limit: &Limit| if limit.is_kept() { "kept" } else { "MISSED" };
    let row = |it: &Limit| (format!("{}: {}", verdict(it), it.name), vec![it.measured, it.at_most]);
    let rows: Vec<_> = limits.iter().map(row).collect();
    println!("{}", report::table(&["measured", "at most"], &rows));
    let missed = limits.iter().filter(|limit| !limit.is_kept()).count();
    println!("{missed} of {} limits are missed; figures and charts: {}", limits.len(), directory.display());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The worker's memory: idle, and while many callers ask for the longest pages and events arrive for so long.
async fn memory(community: &Community, time: Duration) -> Result<Measured> {
    let worker = community.configuration.serve(&community.services)?;
    let subject = profiles::Ranked::DESCRIPTION.subject(community.id().await?);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let memory = || worker.memory().context("the system does not tell a process's memory");
    let (idle, _) = memory()?;
    let (begun, mut samples, mut answered) = (Instant::now(), Vec::new(), 0);
    let mut mix = seed::mix(5, (seed::SKEWED, 1), community.members)?;
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

/// Has the worker compare every count that it keeps with what is counted.
async fn verify(communities: &[Community]) -> Result<Measured> {
    let (mut limits, mut rows) = (Vec::new(), Vec::new());
    for community in communities.iter().filter(|community| community.name == "this") {
        let (name, begun) = (format!("{} members", community.members), Instant::now());
        let mut command = tokio::process::Command::from(community.configuration.command("verify --all"));
        let status = command.kill_on_drop(true).status().await.context("cannot run muster-worker verify")?;
        limits.push(Limit::new(
            format!("verify: exit code of {name}"),
            float(status.code().unwrap_or(1)),
            0.0,
        ));
        rows.push((name, vec![begun.elapsed().as_secs_f64()]));
    }
    let title = "muster-worker verify".to_owned();
    Ok(Measured { title, columns: vec!["seconds"], charted: rows.len(), rows, limits })
}

async fn build(root: &Path, arguments: &Arguments) -> Result<PathBuf> {
    let target = root.join("target");
    let mut build = cargo::cargo(&["build", "--locked", "--package", "muster-worker"]);
    build.args((!arguments.unoptimised).then_some("--release")).env("CARGO_TARGET_DIR", &target);
    let built = cargo::run(build.current_dir(root)).await?;
    ensure!(built.success(), "the worker of {} does not build", root.display());
    Ok(target.join(if arguments.unoptimised { "debug" } else { "release" }).join("muster-worker"))
}
