//! The command line of Muster's checks and demonstrations.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool answers and complains there"
)]

mod bench;
mod cargo;
mod ci;
mod commands;
mod demo;
mod description;
mod documentation;
mod image;
mod manifests;
mod observability;
mod runbook;
mod scan;
mod test;
mod verdict;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use commands::Command;

#[tokio::main]
async fn main() -> ExitCode {
    let command = Command::parse();
    // What a command started is stopped when its future is dropped, however it ends.
    let ended = tokio::select! {
        ended = run(command) => ended,
        interrupted = interrupted() => interrupted,
    };
    ended.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(command: Command) -> Result<ExitCode> {
    let verdict = match command {
        Command::Test(arguments) => return Ok(cargo::exit_code(test::tests(&arguments.for_cargo).await?)),
        Command::Bench(arguments) => return bench::run(&arguments).await,
        Command::Demo(arguments) => demo::run(&arguments).await,
        Command::Ci => ci::run().await,
        Command::Manifests { cluster: true } => manifests::on_cluster().await,
        Command::Manifests { cluster: false } => manifests::check().await,
        Command::Observability => observability::check().await,
        Command::Runbooks { cluster } => runbook::check(cluster).await,
        Command::Documentation { write } => documentation::check(write).await,
        Command::Image(arguments) => image::run(&arguments).await,
        Command::Scan(arguments) => scan::run(&arguments).await,
    };
    verdict.map(ExitCode::from)
}

/// Waits for SIGINT or SIGTERM, and answers the exit code that shells give to a process that one of them ended.
async fn interrupted() -> Result<ExitCode> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (name, code) = tokio::select! {
        _ = interrupt.recv() => ("SIGINT", 130),
        _ = terminate.recv() => ("SIGTERM", 143),
    };
    eprintln!("\n{name}: stopping what was started");
    Ok(ExitCode::from(code))
}
