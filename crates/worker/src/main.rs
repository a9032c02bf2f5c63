//! The Muster worker: takes the chat gateway's events, keeps the record, answers questions.

mod answers;
mod chain;
mod command;
mod connect;
mod core_dumps;
mod descriptors;
mod failure;
mod fitness;
mod logging;
mod metrics;
mod rate_limit;
mod serve;
mod settings;
mod signals;
mod start;
mod traces;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use muster_storage::{Distribute, Migrated};

use crate::command::{ask, check, deadletters, describe, erasures, health, verify};
use crate::failure::Failure;
use crate::logging::queue::LogQueue;
use crate::settings::{Configuration, SettingsError, keys};
use crate::signals::Signals;

/// Batches and answers are many small values that live briefly. musl's own allocator takes one lock for all of them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Takes a chat gateway's events from NATS JetStream, keeps members, badges, tiers and ranks in PostgreSQL, and answers
/// questions over NATS.
///
/// The configuration is built-in defaults, then the file, then MUSTER__… variables; `muster-worker defaults` prints all
/// keys.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// A TOML file with the configuration; without it, the one that the variable MUSTER_CONFIG_FILE names.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Clone)]
enum Command {
    /// Works until it is told to stop. This is the default command.
    Serve,
    /// Brings the database's schema up to date, and distributes the tables of a new one where it is a coordinator of Citus.
    Migrate {
        /// Distributes tables that hold rows, too. Events and requests wait meanwhile.
        #[arg(long)]
        distribute: bool,
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
    /// Prints as JSON what the worker has: keys of the configuration, metrics, endpoints, errors, events, subjects, commands.
    Describe,
    /// Sends one request over NATS, by the configuration's connection, and prints the answer.
    Ask(ask::Arguments),
}

/// Whether a command waits for missing servers and schemas, as serving does.
#[derive(clap::Args, Clone, Copy)]
struct Wait {
    /// Waits for servers that are not there yet, for so many seconds; without a number for `startup.wait_ms`.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true)]
    #[expect(clippy::option_option, reason = "clap's form of an option whose value may be left out")]
    wait: Option<Option<u32>>,
}

impl Wait {
    /// How long to wait, if at all.
    fn bound(self, configuration: &Configuration) -> Result<Option<Duration>, SettingsError> {
        match self.wait {
            None => Ok(None),
            Some(None) => configuration.startup().map(Some),
            Some(Some(seconds)) => Ok(Some(Duration::from_secs(seconds.into()))),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok(log) = LogQueue::start() else {
        let _ =
            writeln!(std::io::stderr(), "the log's thread cannot be started: raise the limit of processes");
        return ExitCode::FAILURE;
    };
    log.take_panics();
    // Before any secret is read.
    if let Err(error) = core_dumps::turn_off() {
        return report(&Failure::Io(error), &log);
    }
    // Before anything makes a TLS connection: there is one provider, and this is the one place that chooses it.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Io(error), &log),
    };
    let ended = runtime.block_on(run(arguments, log.clone()));
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
#[expect(clippy::print_stdout, reason = "these commands' results are for standard output")]
async fn run(arguments: Arguments, log: LogQueue) -> Result<(), Failure> {
    let signals = Signals::take()?;
    let file = arguments.config.as_deref();
    // Each asks for what it needs of the configuration, and for nothing else.
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => {
            let configuration = Configuration::load(file)?;
            let settings = configuration.serving()?;
            let traces = settings.traces.as_ref().map(traces::Exporting::start).transpose()?;
            logging::serving(&configuration.log, &log, traces.as_ref())?;
            serve::serve(settings, signals, traces).await
        }
        Command::Defaults => {
            end_by_signal(signals, &log);
            print!("{}", keys::DEFAULTS);
            Ok(())
        }
        Command::Describe => {
            end_by_signal(signals, &log);
            println!("{:#}", describe::worker(Arguments::command())?);
            Ok(())
        }
        Command::Migrate { distribute, wait } => {
            let configuration = one_shot(file, signals, &log)?;
            let settings = configuration.database()?;
            if let Some(bound) = wait.bound(&configuration)? {
                // By itself, for the bound would break off a migration that takes longer.
                start::wait(bound, async || check::database(&settings).await).await?;
            }
            let (database, _) = connect::database(&settings)?;
            let which = if distribute { Distribute::Filled } else { Distribute::New };
            let Migrated { applied, distributed } = muster_storage::migrate(&database, which).await?;
            for migration in &applied {
                println!("applied {migration}");
            }
            println!("the schema is up to date ({} applied now)", applied.len());
            for table in &distributed.tables {
                println!("distributed {table} by its shard");
            }
            if distributed.options {
                println!("set the planner option n_distinct on the nodes");
            }
            if !distributed.left.is_empty() {
                println!(
                    "{} tables are not distributed and hold rows: run `muster-worker migrate --distribute`, for which events \
                     and requests wait",
                    distributed.left.len()
                );
            }
            Ok(())
        }
        Command::Check { wait } => {
            let configuration = one_shot(file, signals, &log)?;
            if let Some(bound) = wait.bound(&configuration)? {
                let settings = configuration.serving()?;
                // Whatever it comes to, the report says it.
                let _ = start::wait(bound, async || check::everything(&settings).await).await;
            }
            check::check(&configuration).await
        }
        Command::Deadletters { action } => deadletters::run(&one_shot(file, signals, &log)?, &action).await,
        Command::Erasures { action } => {
            erasures::run(&one_shot(file, signals, &log)?.database()?, &action).await
        }
        Command::Pseudonym { ids } => {
            let (database, _) = connect::database(&one_shot(file, signals, &log)?.database()?)?;
            let store = muster_storage::Store::open(database).await?;
            for id in &ids {
                println!("{} {id}", store.pseudonyms().of(id));
            }
            Ok(())
        }
        Command::Verify(arguments) => {
            verify::run(&one_shot(file, signals, &log)?.database()?, arguments).await
        }
        Command::Health => Ok(health::ask(one_shot(file, signals, &log)?.http()?).await?),
        Command::Ask(arguments) => ask::ask(&one_shot(file, signals, &log)?.nats()?, &arguments).await,
    }
}

/// The start of a command that does one thing and ends: its configuration and its log.
fn one_shot(file: Option<&Path>, signals: Signals, log: &LogQueue) -> Result<Configuration, Failure> {
    end_by_signal(signals, log);
    let configuration = Configuration::load(file)?;
    logging::one_shot(&configuration.log, log)?;
    Ok(configuration)
}

/// Ends the process when a signal comes. It runs in its own task, since the command may be blocked on its output.
fn end_by_signal(mut signals: Signals, log: &LogQueue) {
    let log = log.clone();
    tokio::spawn(async move {
        let failure = Failure::Signal(signals.next().await);
        report(&failure, &log);
        std::process::exit(failure.exit_code().into())
    });
}

/// The one line that says why the process ends, whether or not the log was started. It waits for nobody to read it.
fn report(failure: &Failure, log: &LogQueue) -> ExitCode {
    log.flush();
    log.line(&format!("muster-worker: {}", failure.chain()));
    log.flush();
    ExitCode::from(failure.exit_code())
}
