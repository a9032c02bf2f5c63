//! Measures Muster on communities of up to a million members, and holds it to its limits.

mod baseline;
mod charts;
mod community;
mod counts;
mod database;
mod events;
mod limits;
mod load;
mod memory;
mod migrations;
mod mix;
mod processes;
mod questions;
mod read;
mod replicas;
mod report;

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
use community::Community;
use load::Wanted;

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The sizes of community.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000",
        value_parser = clap::value_parser!(u64).range(1000..=9_000_000))]
    members: Vec<u64>,
    /// What is measured: all, unless some are named.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// What makes the communities the same every time.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// For how many seconds each question is asked.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// For how many seconds the worker's memory is watched under load.
    #[arg(long, default_value_t = 600)]
    memory_seconds: u64,
    /// A worker that was built before, in place of one built now.
    #[arg(long)]
    worker: Option<std::path::PathBuf>,
    /// How many events are applied in each row of the events' table.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// Prints how long each step of loading took.
    #[arg(long)]
    times: bool,
    /// Measures this build, optimised or not: for work on the benchmark itself, whose figures then say nothing.
    #[arg(long)]
    unoptimised: bool,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Every list and look-up, in four ways.
    Read,
    /// The worker's memory, for `--memory-seconds`.
    Memory,
    /// Events, end to end.
    Events,
    /// What several workers and several NATS servers do.
    Replicas,
    /// Each migration's time, and reads and writes beside `muster-worker migrate`.
    Migrations,
    /// How long `muster-worker verify` takes.
    Verify,
}

/// Measures; fails when a limit is missed.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) && !arguments.unoptimised {
        return cargo::rerun_optimised().await;
    }
    let worker = match &arguments.worker {
        Some(worker) => worker.clone(),
        None => cargo::build_released_worker().await?,
    };
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut communities = Vec::new();
    for members in &arguments.members {
        let wanted = Wanted { members: *members, seed: arguments.seed, times: arguments.times };
        communities.push(Community::start(wanted, worker.clone()).await?);
    }
    println!(
        "shared_buffers = {}, fsync = on, synchronous_commit = on, {}",
        community::SHARED_BUFFERS,
        community::SETTINGS.map(|(name, value)| format!("{name} = {value}")).join(", ")
    );
    let mut limits = Vec::new();
    let mut figures = Vec::new();
    if wanted(Part::Read) {
        println!("== Questions");
        figures = read::measure(&communities, arguments.seconds).await?;
        println!("{}\n{}", report::reads(&figures), report::rates(&figures));
        limits.extend(limits::of_reads(&figures));
        charts::draw(&figures, &directory()?)?;
    }
    let largest = communities.iter().max_by_key(|community| community.members);
    let mut held = None;
    if wanted(Part::Memory)
        && let Some(largest) = largest
    {
        println!("== Memory, on {} members", largest.members);
        let measured = memory::measure(largest, arguments.memory_seconds).await?;
        println!("{}", serde_json::to_string_pretty(&measured)?);
        limits.extend(measured.limits());
        held = Some(measured);
    }
    // Before events, whose baseline writes past everything that keeps counts.
    if wanted(Part::Verify) {
        println!("== Verification");
        for community in &communities {
            limits.extend(counts::verify(community).await?);
        }
    }
    let mut applied = None;
    if wanted(Part::Events)
        && let Some(largest) = largest
    {
        println!("== Events, on {} members: {}", largest.members, mix::description());
        let measured = events::measure(largest, arguments.events).await?;
        println!("{}", report::events(&measured));
        limits.extend(limits::of_events(&measured));
        applied = Some(measured);
    }
    let mut replicated = None;
    if wanted(Part::Replicas)
        && let Some(largest) = largest
    {
        println!("== Replicas, on {} members", largest.members);
        replicated = Some(replicas::measure(largest).await?);
    }
    let mut migrated = None;
    if wanted(Part::Migrations)
        && let Some(largest) = largest
    {
        println!("== Migrations, on {} members", largest.members);
        let measured = migrations::measure(largest).await?;
        println!("{}", serde_json::to_string_pretty(&measured)?);
        limits.extend(measured.limits());
        migrated = Some(measured);
    }
    println!("{}", report::limits(&limits));
    let all = serde_json::json!({
        "reads": figures, "memory": held, "events": applied, "migrations": migrated, "replicas": replicated,
         "limits": limits,
    });
    let file = directory()?.join("latest.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&all)?)?;
    println!("written to {}", file.display());
    let missed: Vec<&str> =
        limits.iter().filter(|limit| !limit.is_kept()).map(|limit| limit.name.as_str()).collect();
    if missed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} of {} limits are missed:\n  {}", missed.len(), limits.len(), missed.join("\n  "));
    Ok(ExitCode::FAILURE)
}

/// Where charts and figures go.
fn directory() -> Result<std::path::PathBuf> {
    let directory = cargo::root().join("docs/performance");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
