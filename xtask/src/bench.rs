//! Measures Muster on communities of up to a million members, beside an ideal, and holds it to limits. With `--against` it
//! measures another checkout's worker by turns with this one's.

mod events;
mod ideal;
mod load;
mod memory;
mod read;
mod report;
mod seed;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::json;

use crate::cargo;
use load::{Community, Pair};
use report::{Limit, Measured};

/// What `cargo xtask bench` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The sizes of community.
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000",
        value_parser = clap::value_parser!(i64).range(1000..=9_000_000))]
    members: Vec<i64>,
    /// What is measured: all unless some are named; with --against, read and events.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
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

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Every list and look-up: the storage call, the whole way over NATS, an echo, the ideal.
    Read,
    /// The worker's memory under load.
    Memory,
    /// How long `muster-worker verify` takes.
    Verify,
    /// Events end to end, beside ideal events.
    Events,
}

/// Measures; fails when a limit is missed.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) && !arguments.unoptimised {
        return cargo::rerun_optimised().await;
    }
    let worker = build(&cargo::root(), arguments).await?;
    let settings = load::SETTINGS.map(|(name, value)| format!("{name} = {value}")).join(", ");
    println!("PostgreSQL: fsync = on, {settings}");
    let mut communities = Vec::new();
    for members in &arguments.members {
        let this = Community::start("this", *members, &cargo::root(), &worker).await?;
        let other = match &arguments.against {
            Some(checkout) => {
                let worker = build(checkout, arguments).await?;
                Some(Community::start("other", *members, checkout, &worker).await?)
            }
            None => None,
        };
        communities.push((this, other));
    }
    let directory = if arguments.unoptimised { "target/bench" } else { "docs/performance" };
    let directory = cargo::root().join(directory);
    std::fs::create_dir_all(&directory)?;
    let parts = match arguments.only.as_slice() {
        [] if arguments.against.is_some() => &[Part::Read, Part::Events],
        [] => Part::value_variants(),
        some => some,
    };
    let largest = communities.iter().max_by_key(|(this, _)| this.members).context("no community")?;
    let (mut limits, mut latest) = (Vec::new(), serde_json::Map::new());
    for part in parts {
        let name = part.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        println!("== {name}");
        let measured = match part {
            Part::Read => read::measure(&communities, Duration::from_secs(arguments.seconds)).await?,
            Part::Memory => {
                memory::measure(&largest.0, Duration::from_secs(arguments.memory_seconds)).await?
            }
            Part::Verify => verify(&communities, "as made").await?,
            Part::Events => {
                let mut measured = events::measure(&largest.0, largest.1.as_ref(), arguments.events).await?;
                measured
                    .limits
                    .extend(verify(std::slice::from_ref(largest), "after the events").await?.limits);
                measured
            }
        };
        std::fs::write(directory.join(format!("{name}.svg")), report::chart(&measured))?;
        limits.extend(measured.limits);
        latest.insert(name, measured.figures);
    }
    latest.insert("limits".to_owned(), json!(limits));
    std::fs::write(directory.join("latest.json"), serde_json::to_vec_pretty(&latest)?)?;
    println!("{}\nfigures and charts are in {}", report::limits(&mut limits), directory.display());
    let missed = limits.iter().filter(|limit| !limit.is_kept()).count();
    println!("{missed} of {} limits are missed", limits.len());
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Has the worker compare everything that is kept counted in each database.
async fn verify(communities: &[Pair], when: &str) -> Result<Measured> {
    let (mut limits, mut bars) = (Vec::new(), Vec::new());
    for (community, _) in communities {
        let (members, begun) = (community.members, Instant::now());
        let mut command = tokio::process::Command::from(community.configuration.command("verify --all"));
        let output = command.kill_on_drop(true).output().await.context("cannot run muster-worker verify")?;
        let seconds = begun.elapsed().as_secs_f64();
        println!("  {members} members compared in {seconds:.1} s");
        let is_exact = output.status.success();
        if !is_exact {
            println!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let drift = if is_exact { 0.0 } else { 1.0 };
        limits.push(Limit::new(format!("verify: drift in {members} members {when}"), drift, 0.0));
        bars.push((format!("{members} members"), vec![seconds * 1e6 / report::float(members)]));
    }
    let (figures, title) = (json!(bars), "muster-worker verify, µs a member".to_owned());
    Ok(Measured { limits, figures, title, bars })
}

/// Builds the worker of a checkout.
async fn build(checkout: &Path, arguments: &Arguments) -> Result<PathBuf> {
    let checkout = checkout.canonicalize().with_context(|| format!("no checkout {}", checkout.display()))?;
    let target = checkout.join("target");
    let mut build = cargo::command(cargo::program(), &["build", "--locked", "--package", "muster-worker"]);
    build.args((!arguments.unoptimised).then_some("--release")).env("CARGO_TARGET_DIR", &target);
    let built = cargo::run(build.current_dir(&checkout)).await?;
    ensure!(built.success(), "the worker of {} does not build", checkout.display());
    Ok(target.join(if arguments.unoptimised { "debug" } else { "release" }).join("muster-worker"))
}
