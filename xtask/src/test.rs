use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use xtask::services::Services;

use crate::cargo;

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What is handed to `cargo test`, such as a test's name.
    #[arg(last = true)]
    for_cargo: Vec<String>,
}

/// Runs every test and answers with cargo's own exit code.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let code = tests(&arguments.for_cargo).await?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs every test; answers cargo's exit code, 0 only when all passed.
pub(crate) async fn tests(for_cargo: &[String]) -> Result<i32> {
    let worker = cargo::build_worker().await?;
    let services = Services::start(false)?;
    println!(
        "started PostgreSQL {} on port {} and nats-server {} on port {}",
        services.postgres.server().version,
        services.postgres.port(),
        services.nats.server().version,
        services.nats.port(),
    );
    let mut command =
        cargo::command(cargo::program(), &["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.args(for_cargo).envs(variables(&services, &worker)?);
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut sum = Sum::default();
    let status = cargo::run_reading(&mut command, |line| sum.add(line)).await?;
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(status.code().unwrap_or(1))
}

/// What the tests are told of the servers.
fn variables(services: &Services, worker: &Path) -> Result<Vec<(&'static str, String)>> {
    let path = |path: &Path| path.display().to_string();
    Ok(vec![
        ("MUSTER_TEST_DATABASE_URL", services.postgres.url("postgres")),
        ("MUSTER_TEST_CA_FILE", path(services.authority.certificate_file())),
        ("MUSTER_NATS_SERVER", path(&services.nats.server().program)),
        ("MUSTER_POSTGRES_BIN", path(&services.postgres.server().bin)),
        ("MUSTER_TEST_WORKER", path(worker)),
    ])
}

#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
}

impl Sum {
    /// Adds up lines such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.split_once("test result: ") else { return };
        let words = counts.split_whitespace();
        let mut before = None;
        for word in words {
            let count = before.and_then(|word: &str| word.parse::<u64>().ok()).unwrap_or(0);
            match word.trim_end_matches(';') {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                _ => {}
            }
            before = Some(word);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_test_programs_are_added_up() {
        let mut sum = Sum::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: \u{1b}[31mFAILED\u{1b}[m. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
        ] {
            sum.add(line);
        }
        assert_eq!((sum.passed, sum.failed), (13, 2));
    }
}
