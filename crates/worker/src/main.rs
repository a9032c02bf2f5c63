//! The Muster worker: takes the chat gateway's events, keeps the record, answers questions.

mod answers;
mod ask;
mod check;
mod connect;
mod deadletters;
mod descriptors;
mod erasures;
mod failure;
mod health;
mod http;
mod limits;
mod log_queue;
mod logging;
mod metrics;
mod readiness;
mod rotation;
mod serve;
mod session;
mod settings;
mod signals;
mod start;
mod traces;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::log_queue::LogQueue;
use crate::settings::Settings;
use crate::signals::Signals;

/// Takes a chat gateway's events from NATS JetStream, keeps members, badges, tiers and ranks in PostgreSQL, and answers
/// questions over NATS.
///
/// The configuration is built-in defaults, then the file, then MUSTER__… variables; `muster-worker defaults` prints all
/// keys.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// A TOML file with the configuration.
    #[arg(long, env = "MUSTER_CONFIG_FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Clone)]
enum Command {
    /// Works until it is told to stop. What happens without a command.
    Serve,
    /// Brings the database's schema up to date.
    Migrate {
        #[command(flatten)]
        wait: Wait,
    },
    /// Reports whether the configuration and both connections would work; exit code 0 only if all would.
    Check {
        #[command(flatten)]
        wait: Wait,
    },
    /// Asks the running worker whether it is alive.
    Health,
    /// Lists, shows, replays or drops events that could not be applied.
    Deadletters {
        #[command(subcommand)]
        action: deadletters::Action,
    },
    /// Exports the list of erasures, or applies one to a database that was restored from an older backup.
    Erasures {
        #[command(subcommand)]
        action: erasures::Action,
    },
    /// Compares every kept count with what plain counting comes to, while the workers go on; exit code 3 when something
    /// drifted and was not repaired.
    Verify(verify::Arguments),
    /// Prints every key of the configuration with its default.
    Defaults,
    /// Prints the pseudonyms under which persons stand in the log, each beside its id.
    Pseudonym {
        /// Ids of users, profiles or callers.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Prints every metric: name, kind, unit, labels, description.
    Metrics {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Sends one request over NATS, by the configuration's connection, and prints the answer.
    Ask(ask::Arguments),
}

/// Whether a command waits for what is missing, as serving does.
#[derive(clap::Args, Clone, Copy)]
struct Wait {
    /// Waits for servers that are not there yet, for so many seconds; without a number for `startup.wait_ms`.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[expect(clippy::option_option, reason = "clap's form of an option whose value may be left out")]
    wait: Option<Option<u32>>,
}

impl Wait {
    /// How long to wait, where it is waited.
    fn bound(self, settings: &Settings) -> Option<Duration> {
        let seconds = self.wait?;
        Some(seconds.map_or(settings.startup, |seconds| Duration::from_secs(seconds.into())))
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok(log) = LogQueue::start() else { return ExitCode::FAILURE };
    log.take_panics();
    // Before anything makes a TLS connection: there is one provider, and this is the one place that chooses it.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Io(error), &log),
    };
    let ended = runtime.block_on(until_signal(arguments, log.clone()));
    // Not waiting for what may hang in it, such as looking up a name.
    runtime.shutdown_background();
    match ended {
        Ok(()) => {
            log.flush();
            ExitCode::SUCCESS
        }
        Err(failure) => report(&failure, &log),
    }
}

/// Runs the command. Serving drains when a signal comes; anything else ends by it.
async fn until_signal(arguments: Arguments, log: LogQueue) -> Result<(), Failure> {
    let mut signals = Signals::take()?;
    let file = arguments.config;
    let command = match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => return serve(file.as_deref(), signals, &log).await,
        command => command,
    };
    let ending = log.clone();
    // In a task of its own, for the command may be waiting for whoever reads what it prints.
    tokio::spawn(async move {
        let failure = Failure::Signal(signals.next().await);
        report(&failure, &ending);
        std::process::exit(failure.exit_code().into())
    });
    run(file.as_deref(), command, &log).await
}

async fn serve(file: Option<&Path>, signals: Signals, log: &LogQueue) -> Result<(), Failure> {
    let settings = Settings::load(file, None)?;
    let traces = settings.traces.as_ref().map(traces::Exporting::start).transpose()?;
    logging::serving(&settings.log, log, traces.as_ref())?;
    serve::serve(settings, signals, traces).await
}

#[expect(clippy::print_stdout, reason = "these commands' results are for standard output")]
async fn run(file: Option<&Path>, command: Command, log: &LogQueue) -> Result<(), Failure> {
    match &command {
        Command::Defaults => {
            print!("{}", settings::DEFAULTS);
            return Ok(());
        }
        Command::Metrics { json } => {
            print!("{}", metrics::list(*json));
            return Ok(());
        }
        Command::Check { wait: Wait { wait: None } } => return check::check(file).await,
        Command::Ask(arguments) => return ask::ask(file, arguments).await,
        _ => {}
    }
    let settings = Settings::load(file, None)?;
    logging::one_shot(&settings.log, log)?;
    match command {
        Command::Migrate { wait } => {
            if let Some(bound) = wait.bound(&settings) {
                // By itself, for the bound would break off a migration that takes longer.
                start::wait(bound, async || check::database(&settings).await).await?;
            }
            let database = connect::configure(&settings)?.database;
            let applied = muster_storage::migrate(&database).await?;
            for migration in &applied {
                println!("applied {migration}");
            }
            println!("the schema is up to date ({} applied now)", applied.len());
            Ok(())
        }
        Command::Check { wait } => {
            if let Some(bound) = wait.bound(&settings) {
                // Whatever it comes to, the report says it.
                let _ = start::wait(bound, async || check::everything(&settings).await).await;
            }
            check::check(file).await
        }
        Command::Deadletters { action } => deadletters::run(&settings, &action).await,
        Command::Erasures { action } => erasures::run(&settings, &action).await,
        Command::Pseudonym { ids } => {
            let store = muster_storage::Store::open(connect::configure(&settings)?.database).await?;
            for id in &ids {
                println!("{} {id}", store.pseudonyms().of(id));
            }
            Ok(())
        }
        Command::Verify(arguments) => verify::run(&settings, arguments).await,
        Command::Health => Ok(health::ask(settings.http).await?),
        Command::Serve | Command::Defaults | Command::Metrics { .. } | Command::Ask(_) => Ok(()),
    }
}

/// The one line that says why the process ends, whether or not the log was started. It waits for nobody to read it.
fn report(failure: &Failure, log: &LogQueue) -> ExitCode {
    log.flush();
    log.line(&format!("muster-worker: {}", failure.chain()));
    log.flush();
    ExitCode::from(failure.exit_code())
}
