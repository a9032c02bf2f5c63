//! Measures Muster on communities of up to a million members, and holds it to its limits.

mod community;
mod database;
mod load;

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
    /// What makes the communities the same every time.
    #[arg(long, default_value_t = 1)]
    seed: u32,
}

/// Measures; fails when a limit is missed.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    if cfg!(debug_assertions) && std::env::var_os("MUSTER_BENCH_UNOPTIMISED").is_none() {
        return cargo::rerun_optimised().await;
    }
    let worker = std::path::PathBuf::from("target/release/muster-worker");
    for members in &arguments.members {
        let community = Community::start(Wanted { members: *members, seed: arguments.seed }, worker.clone()).await?;
        println!("{} {}", community.members, community.id);
    }
    Ok(ExitCode::SUCCESS)
}
