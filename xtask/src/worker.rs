//! The worker as a process of its own, configured as a container would be.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use muster_messaging::client::{Client, EventPublisher};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::services::{Identity, Process, Services, free_address, get};

/// How long the worker may take until it is ready, and until it has stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the worker is configured: by variables, as a container would be.
#[derive(Clone)]
pub struct Configuration {
    /// Where the worker's health and metrics are.
    pub address: SocketAddr,
    /// The worker, or an example.
    pub program: PathBuf,
    /// What it is told beside the image's variables.
    pub variables: BTreeMap<&'static str, String>,
}

impl Configuration {
    /// For production, with every secret in a file.
    pub fn new(program: PathBuf, services: &Services) -> Result<Self> {
        let path = |path: &Path| path.display().to_string();
        let url =
            services.directory.secret_file("worker-database-url", &services.postgres.url("postgres"))?;
        let ca = path(services.authority.certificate_file());
        let address = free_address()?;
        let variables = BTreeMap::from([
            ("MUSTER__ENVIRONMENT", "production".to_owned()),
            ("MUSTER__NATS__URLS", services.nats.url()),
            ("MUSTER__NATS__CA_FILE", ca.clone()),
            ("MUSTER__NATS__CERTIFICATE_FILE", path(&services.clients.worker.certificate_file)),
            ("MUSTER__NATS__KEY_FILE", path(&services.clients.worker.key_file)),
            ("MUSTER__NATS__TLS_FIRST", "true".to_owned()),
            ("MUSTER__DATABASE__URL_FILE", path(&url)),
            ("MUSTER__DATABASE__CA_FILE", ca),
            ("MUSTER__HTTP__ADDRESS", address.to_string()),
        ]);
        Ok(Self { program, variables, address })
    }

    /// For an example of muster-messaging: as the reader of this community, whose consumer is made.
    pub async fn example(&self, program: PathBuf, services: &Services, community: &str) -> Result<Self> {
        let shipped = "018f4e2a-0000-7000-8000-000000000001";
        let make = include_str!("worker/reader-changes").replace(shipped, community);
        let made = self.as_client(&services.clients.streams).run(&make).await?;
        ensure!(made.status.success(), "the reader's consumer is not made: {made:?}");
        services.nats.change_accounts(shipped, community)?;
        Ok(Self { program, ..self.as_client(&services.authority.client("muster-reader")?).elsewhere()? })
    }

    /// The same with one more variable, or another value of one.
    #[must_use]
    pub fn with(&self, variable: &'static str, value: impl Into<String>) -> Self {
        let mut changed = self.clone();
        changed.variables.insert(variable, value.into());
        changed
    }

    /// The same as another user of NATS, for a command that is not the worker's to give.
    #[must_use]
    pub fn as_client(&self, client: &Identity) -> Self {
        self.with("MUSTER__NATS__CERTIFICATE_FILE", client.certificate_file.display().to_string())
            .with("MUSTER__NATS__KEY_FILE", client.key_file.display().to_string())
    }

    /// The same on an address of its own, for a second worker beside the first.
    pub fn elsewhere(&self) -> Result<Self> {
        let address = free_address()?;
        Ok(Self { address, ..self.with("MUSTER__HTTP__ADDRESS", address.to_string()) })
    }

    /// One of the worker's commands, not yet started.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        // Of the worker's own variables only what is configured here counts; others are the image's.
        let others = env::vars_os().filter(|(name, _)| !name.to_string_lossy().starts_with("MUSTER_"));
        let image = include_str!("../../infra/docker/Dockerfile").lines();
        let image = image.filter_map(|line| line.strip_prefix("ENV ")).flat_map(|set| set.split(' '));
        command.env_clear().envs(others).envs(image.filter_map(|set| set.split_once('=')));
        command.args(arguments.split_whitespace()).envs(&self.variables);
        command
    }

    /// Runs one of the worker's commands, its arguments parted by spaces, to its end, for at most half a minute.
    pub async fn run(&self, arguments: &str) -> Result<Output> {
        let mut command = tokio::process::Command::from(self.command(arguments));
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        let ended = tokio::time::timeout(PATIENCE, command.output()).await;
        let ended = ended.with_context(|| format!("{arguments} runs longer than {PATIENCE:?}"))?;
        ended.context("cannot run muster-worker")
    }

    /// Starts it and waits until it is ready, for at most half a minute.
    pub fn serve(&self, services: &Services) -> Result<Worker> {
        let mut worker = self.start(services)?;
        worker.process.wait_until_ok(PATIENCE, self.address, "/readyz")?;
        Ok(worker)
    }

    /// Starts it and waits for nothing.
    pub fn start(&self, services: &Services) -> Result<Worker> {
        let mut command = self.command("serve");
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        let process = Process::start(&services.directory, &name, &mut command, Signal::SIGTERM)?;
        Ok(Worker { process, address: self.address })
    }
}

/// What came of the events so far, by the worker's metrics.
#[derive(Debug, Default)]
pub struct EventCounts {
    /// Had their effect.
    pub applied: u64,
    /// Came again and had none.
    pub duplicates: u64,
    /// Were not understood, or given up.
    pub lost: u64,
}

/// The worker at work. It is stopped when this value is dropped.
pub struct Worker {
    /// Where its health and metrics are.
    pub address: SocketAddr,
    process: Process,
}

impl Deref for Worker {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Worker {
    /// Asks it for a path by HTTP; answers the status and the body.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(self.address, path)
    }

    /// Reads the counts of events off its metrics.
    pub fn event_counts(&self) -> Result<EventCounts> {
        let (status, text) = self.get("/metrics")?;
        ensure!(status == 200, "the worker answers {status} for its metrics");
        let count = |outcomes: &[&str]| {
            let of = |line: &str| outcomes.iter().any(|name| line.contains(&format!("outcome=\"{name}\"")));
            let lines = text.lines().filter(|line| line.starts_with("muster_events_total{") && of(line));
            lines.filter_map(|line| line.rsplit(' ').next()).map(str::parse::<u64>).sum::<Result<u64, _>>()
        };
        let lost = count(&["unknown_type", "malformed", "given_up", "dead_letter_failed"])?;
        Ok(EventCounts { applied: count(&["applied"])?, duplicates: count(&["duplicate"])?, lost })
    }

    /// Waits until all events are acknowledged, by the account of the broker, which `streams` may ask.
    pub async fn until_acknowledged(&self, streams: &Client, patience: Duration) -> Result<()> {
        let (end, subject) = (Instant::now() + patience, "$JS.API.CONSUMER.INFO.EVENTS.muster-worker");
        loop {
            let answer = streams.ask_by_hand(subject, Vec::new()).await?;
            let info: Value = serde_json::from_slice(&answer.body)?;
            if ["num_pending", "num_ack_pending"].iter().all(|count| info.get(count) == Some(&0.into())) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "events wait, and the log ends:\n{}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its memory now and at most so far, in MiB, where the system tells.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).ok()?;
        let mebibytes = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key))?;
            value.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes / 1024)
        };
        Some((mebibytes("VmRSS:")?, mebibytes("VmHWM:")?))
    }

    /// Kills it, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Waits until it ends by itself, for at most half a minute; answers its exit code.
    pub fn wait(&mut self) -> Result<Option<i32>> {
        Ok(self.process.wait(PATIENCE)?.context("the worker did not end")?.code())
    }

    /// Tells it to stop as an orchestrator would; answers its exit code.
    pub fn stop(mut self) -> Result<Option<i32>> {
        self.process.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(PATIENCE)?.and_then(|status| status.code()))
    }
}

/// Publishes events, each a subject and a payload, in their order, and waits until the broker has stored all of them.
pub async fn publish(to: &EventPublisher, events: impl IntoIterator<Item = (String, String)>) -> Result<()> {
    let sent = stream::iter(events).map(|(subject, event)| to.publish_raw(subject, event.into()));
    let stored = sent.buffered(EventPublisher::MAX_IN_FLIGHT).try_for_each(async |_| Ok(()));
    stored.await.context("the broker did not store an event")
}
