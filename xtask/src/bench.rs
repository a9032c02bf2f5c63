//! Measures Muster on communities of up to a million members, and holds it to its limits.

mod baseline;
mod community;
mod counts;
mod database;
mod events;
mod load;
mod mix;
mod processes;

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
    /// How many events are applied in each row of the events' table.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Events, end to end.
    Events,
}

/// Measures; fails when a limit is missed.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) && std::env::var_os("MUSTER_BENCH_UNOPTIMISED").is_none() {
        return cargo::rerun_optimised().await;
    }
    let worker = std::path::PathBuf::from("target/release/muster-worker");
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut communities = Vec::new();
    for members in &arguments.members {
        let wanted = Wanted { members: *members, seed: arguments.seed };
        communities.push(Community::start(wanted, worker.clone()).await?);
    }
    if wanted(Part::Events) && let Some(largest) = communities.iter().max_by_key(|community| community.members) {
        println!("== Events, on {} members", largest.members);
        let measured = events::measure(largest, arguments.events).await?;
        println!("{}", serde_json::to_string_pretty(&measured)?);
    }
    Ok(ExitCode::SUCCESS)
}
