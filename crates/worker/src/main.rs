//! The Muster worker: takes the chat gateway's events, keeps the record, answers questions.

mod answers;
mod ask;
mod check;
mod connect;
mod deadletters;
mod failure;
mod health;
mod http;
mod limits;
mod logging;
mod metrics;
mod readiness;
mod rotation;
mod serve;
mod session;
mod settings;
mod traces;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::settings::Settings;

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
    Migrate,
    /// Reports whether the configuration and both connections would work; exit code 0 only if all would.
    Check,
    /// Asks the running worker whether it is alive.
    Health,
    /// Lists, shows, replays or drops events that could not be applied.
    Deadletters {
        #[command(subcommand)]
        action: deadletters::Action,
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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Before anything makes a TLS connection: there is one provider, and this is the one place that chooses it.
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Io(error)),
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure),
    }
}

#[expect(clippy::print_stdout, reason = "these commands' results are for standard output")]
async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let command = arguments.command.clone().unwrap_or(Command::Serve);
    if matches!(command, Command::Defaults) {
        print!("{}", settings::DEFAULTS);
        return Ok(());
    }
    if let Command::Metrics { json } = command {
        print!("{}", metrics::list(json));
        return Ok(());
    }
    let file = arguments.config.as_deref();
    if matches!(command, Command::Check) {
        return check::check(file).await;
    }
    if let Command::Ask(arguments) = command {
        return ask::ask(file, &arguments).await;
    }
    let settings = Settings::load(file, None)?;
    if !matches!(command, Command::Serve) {
        logging::one_shot(&settings.log)?;
    }
    match command {
        Command::Serve => {
            let traces = settings.traces.as_ref().map(traces::Exporting::start).transpose()?;
            logging::serving(&settings.log, traces.as_ref())?;
            let deadline = settings.shutdown;
            let served = serve::serve(settings).await;
            if let Some(traces) = traces {
                traces.stop(deadline).await;
            }
            served
        }
        Command::Migrate => {
            let database = connect::configure(&settings)?.database;
            let applied = muster_storage::migrate(&database).await?;
            for migration in &applied {
                println!("applied {migration}");
            }
            println!("the schema is up to date ({} applied now)", applied.len());
            Ok(())
        }
        Command::Deadletters { action } => deadletters::run(&settings, &action).await,
        Command::Pseudonym { ids } => {
            let store = muster_storage::Store::open(connect::configure(&settings)?.database).await?;
            for id in &ids {
                println!("{} {id}", store.pseudonyms().of(id));
            }
            Ok(())
        }
        Command::Verify(arguments) => verify::run(&settings, arguments).await,
        Command::Health => Ok(health::ask(settings.http).await?),
        Command::Check | Command::Defaults | Command::Metrics { .. } | Command::Ask(_) => Ok(()),
    }
}

/// The one line that says why the process ends, whether or not the log was started.
#[expect(clippy::print_stderr, reason = "the log may not have been started")]
fn report(failure: &Failure) -> ExitCode {
    eprintln!("muster-worker: {}", failure.chain());
    ExitCode::from(failure.exit_code())
}
