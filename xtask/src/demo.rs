//! The demonstration: the story of one community, told by a real worker on real servers.
#![expect(clippy::indexing_slicing, reason = "a field that JSON lacks is null, so it cannot panic")]

mod chapters;
pub(crate) mod community;
mod story;

use std::time::Instant;

use anyhow::Result;

use crate::cargo;
use crate::verdict::Verdict;
use chapters::Demo;

/// What `cargo xtask demo` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many members the community has.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u32).range(100..=50_000))]
    members: u32,
    /// Leave everything running until Ctrl-C, and print how to ask it.
    #[arg(long)]
    keep: bool,
}

/// Tells the story, and checks what it shows: the first check that fails ends it with an error.
pub(crate) async fn run(arguments: &Arguments) -> Result<Verdict> {
    println!("Building the worker");
    let program = cargo::build_worker().await?;
    let started = Instant::now();
    let mut demo = Demo::start(program, arguments.members).await?;
    demo.found().await?;
    demo.board().await?;
    demo.rise().await?;
    demo.badge().await?;
    demo.search().await?;
    demo.gateway().await?;
    demo.bound().await?;
    demo.plaintext().await?;
    let demo = demo.kill().await?.erase().await?;
    let (checks, seconds) = (demo.story.checks, started.elapsed().as_secs_f64());
    println!("\nAll {checks} checks passed, {seconds:.0} s after the build.\n");
    demo.story.section("What to do next")?;
    if arguments.keep {
        demo.story.section("Left running until Ctrl-C")?;
        demo.how_to_ask()?;
        return std::future::pending().await;
    }
    Ok(Verdict::Passed)
}
