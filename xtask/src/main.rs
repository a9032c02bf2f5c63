//! The command line of Muster's checks and demonstrations.

#![expect(clippy::print_stdout, reason = "a command line tool answers on standard output")]
#![expect(clippy::print_stderr, reason = "and complains on standard error")]

mod bench;
mod cargo;
mod ci;
mod demo;
mod description;
mod documentation;
mod image;
mod manifests;
mod observability;
mod runbook;
mod scan;
mod shipped;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Muster's checks and demonstrations.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show everything at work: a real PostgreSQL, a real NATS with TLS, the real worker, real events.
    Demo(demo::Arguments),
    /// Start PostgreSQL and NATS once and run every test of the workspace against them.
    Test(test::Arguments),
    /// Measure on communities of up to a million members, and fail when a limit is missed.
    Bench(bench::Arguments),
    /// Run every check that a change must pass, and print one table of verdicts.
    Ci,
    /// Render the Kubernetes manifests and check them against the schema and Muster's rules.
    Manifests {
        /// Try the admission policies, planted faults and production on the cluster that kubectl speaks to.
        #[arg(long)]
        cluster: bool,
    },
    /// Check the alerts and the dashboard.
    Observability,
    /// Run every command of the runbooks against real servers and check its stated outcome.
    Runbooks {
        /// Run the blocks that need a cluster, too, on the one that KUBECONFIG names: an empty one, since they change it.
        #[arg(long)]
        cluster: bool,
    },
    /// Check that what the documents name exists, and that their tables are current.
    Documentation {
        /// Write the tables anew.
        #[arg(long)]
        write: bool,
    },
    /// Build the worker's image and run it as the manifests would.
    Image(image::Arguments),
    /// Scan image, manifests, workflows and repository; a finding fails.
    Scan(scan::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = Arguments::parse().command;
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
    match command {
        Command::Demo(arguments) => demo::run(&arguments).await,
        Command::Test(arguments) => test::run(&arguments).await,
        Command::Bench(arguments) => bench::run(&arguments).await,
        Command::Ci => ci::run().await,
        Command::Manifests { cluster: true } => manifests::on_cluster().await.map(Into::into),
        Command::Manifests { cluster: false } => manifests::check().await.map(Into::into),
        Command::Observability => observability::check().await.map(Into::into),
        Command::Runbooks { cluster } => runbook::check(cluster).await.map(Into::into),
        Command::Documentation { write } => documentation::check(write).await.map(Into::into),
        Command::Image(arguments) => image::run(&arguments).await,
        Command::Scan(arguments) => scan::run(&arguments),
    }
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
