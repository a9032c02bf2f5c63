//! Every test of the workspace, against servers that are started once for all of them.

use std::process::ExitStatus;
use std::thread::available_parallelism;

use anyhow::Result;
use xtask::services::Services;

use crate::cargo;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What is handed to `cargo test`, such as a test's name.
    #[arg(last = true)]
    pub(crate) for_cargo: Vec<String>,
}

pub(crate) async fn tests(for_cargo: &[String]) -> Result<ExitStatus> {
    let worker = cargo::build_worker().await?;
    let services = Services::start(1, false)?;
    let (postgres, nats) = (&services.postgres.options.server, &services.nats.options.server);
    println!("started PostgreSQL {} and nats-server {}", postgres.version, nats.version);
    let mut test = cargo::cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    test.args(for_cargo).env("MUSTER_TEST_DATABASE_URL", services.postgres.url("postgres"));
    test.env("MUSTER_TEST_CA_FILE", services.authority.certificate_file()).env("MUSTER_TEST_WORKER", worker);
    test.env("MUSTER_NATS_SERVER", &nats.program).env("MUSTER_POSTGRES_BIN", postgres.bin());
    // Most of the time a test waits for its servers.
    test.env("RUST_TEST_THREADS", (2 * available_parallelism()?.get()).to_string());
    cargo::run(&mut test).await
}
