//! The demonstration: everything real, for two minutes, on this machine.

mod community;
mod gateway;
mod promises;
mod questions;
mod report;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use muster_messaging::client::{Client, EventPublisher};
use muster_messaging::connection::Connection;
use time::OffsetDateTime;
use xtask::services::Services;

use crate::cargo;
use promises::Promises;
use questions::Questions;
use report::Report;
use xtask::worker::{Configuration, Worker};

/// What `cargo xtask demo` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many members the community has.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(10..=1_000_000))]
    members: u64,
    /// Leave everything up until Ctrl-C, and say how to reach it.
    #[arg(long)]
    keep: bool,
}

/// Shows Muster at work; fails when anything is not as it should be.
pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    println!("== Building the worker");
    let program = cargo::build_worker().await?;
    let started = Instant::now();

    println!("\n== Starting PostgreSQL and NATS, private and with TLS");
    let services = Services::start(true)?;
    println!(
        "PostgreSQL {} on port {}, nats-server {} on port {}, in {}",
        services.postgres.server().version,
        services.postgres.port(),
        services.nats.server().version,
        services.nats.port(),
        services.directory.path().display(),
    );

    let mut report = Report::default();
    let configuration = Configuration::new(program, &services)?;
    for command in ["migrate", "check"] {
        println!("\n== muster-worker {command}");
        let output = configuration.run(command).await?;
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "muster-worker {command} ended with {}", output.status);
        report.holds(format!("muster-worker {command} succeeds"), output.status.success(), output.status);
    }

    println!("\n== muster-worker serve, in production");
    let worker = configuration.serve(&services)?;
    println!("ready at http://{}/readyz", worker.address());
    show_memory("idle", &worker);

    println!("\n== Publishing a community of {} members as gateway events", arguments.members);
    let client = client(&services).await?;
    let gateway = Connection::open(services.nats_config(&services.clients.gateway, "gateway")?).await?;
    let publisher = EventPublisher::new(&gateway);
    let (events, model) = community::generate(arguments.members, OffsetDateTime::now_utc())?;
    let published = community::count(events.len());
    gateway::publish(&publisher, &worker, events).await?;
    let counts = worker.event_counts()?;
    println!("the worker counted {counts}");
    report.equal("events: each applied once", counts.applied(), published);
    report.equal("events: none lost or dead-lettered", counts.lost(), 0);

    println!("\n== Asking over NATS");
    let community = questions::find(&client, &mut report).await?;
    Questions { client: community.clone(), model: &model, report: &mut report }.ask().await?;
    let mut promises = Promises {
        client: community.clone(),
        publisher,
        worker: &worker,
        model: &model,
        report: &mut report,
    };
    promises.bounded().await?;
    promises.exactly_once().await?;
    promises.promoted().await?;
    promises::plaintext_refused(&configuration, &services.nats.url(), &mut report).await?;
    show_memory("after all of it", &worker);

    if arguments.keep {
        println!("\n{}", report.table());
        how_to_reach(&services, &worker, &community.id().to_string())?;
        return std::future::pending().await;
    }
    report.equal("SIGTERM: the worker stops in good order", worker.stop()?, Some(0));
    println!("\n== Verified\n{}", report.table());
    let seconds = started.elapsed().as_secs_f64();
    let failures = report.failures();
    println!("{} of {} hold, {seconds:.1} s after the build", report.len() - failures, report.len());
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Who asks: an operator, since no sibling may read a community before its id is known.
pub(crate) async fn client(services: &Services) -> Result<Client> {
    let config = services.nats_config(&services.clients.operator, "muster-demo")?;
    Client::connect(config).await.context("cannot connect to NATS")
}

fn show_memory(when: &str, worker: &Worker) {
    if let Some((now, most)) = worker.memory() {
        println!("the worker's memory {when}: {now} MiB, at most {most} MiB");
    }
}

fn how_to_reach(services: &Services, worker: &Worker, community: &str) -> Result<()> {
    let ca = services.authority.certificate_file().display();
    let operator = &services.clients.operator;
    let address = worker.address();
    println!("\n== Left up until Ctrl-C");
    println!("NATS        {} (as muster-operator, by certificate)", services.nats.url());
    println!("PostgreSQL  {}", services.postgres.url("postgres"));
    println!("worker      http://{address}/livez, /readyz, /metrics; log {}", worker.log().display());
    println!("CA          {ca}");
    println!("\nTry:");
    println!(
        "  nats --server {} --tlsfirst --tlsca {ca} --tlscert {} --tlskey {} \\\n    request \
         muster.v1.{community}.profiles.ranked '{{\"limit\": 3}}'",
        services.nats.url(),
        operator.certificate_file.display(),
        operator.key_file.display(),
    );
    println!("  curl -s http://{address}/metrics");
    println!(
        "  psql \"{}&sslrootcert={ca}\" -c 'SELECT nym, conviction FROM profiles JOIN scores USING (community_id, \
         profile_id) ORDER BY conviction DESC LIMIT 3'",
        services.postgres.url("postgres"),
    );
    Ok(())
}
