//! The worker as a process of its own, configured as a container would be: for the demo and for the tests that see it whole.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::services::{Identity, Process, Services};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

/// How long the worker may take until it is ready, and until it has stopped.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the worker is configured: by variables, as a container would be.
pub struct Configuration {
    program: PathBuf,
    variables: BTreeMap<&'static str, String>,
    address: SocketAddr,
    production: bool,
}

impl Configuration {
    /// For production, with every secret in a file; for a test where the NATS server is older than production takes.
    ///
    /// # Errors
    /// When a file cannot be written or no port is free.
    pub fn new(program: PathBuf, services: &Services) -> Result<Self> {
        let path = |path: &Path| path.display().to_string();
        let url =
            services.directory.secret_file("worker-database-url", &services.postgres.url("postgres"))?;
        let ca = path(services.authority.certificate_file());
        let address = free_address()?;
        // Production refuses a server that is older; where nothing newer can be had, all else is as in production.
        let production = services.nats.server().version >= muster_messaging::connection::SERVER_FLOOR.least;
        let mut variables = BTreeMap::from([
            ("MUSTER__ENVIRONMENT", "production".to_owned()),
            ("MUSTER__NATS__URLS", services.nats.url()),
            ("MUSTER__NATS__CA_FILE", ca.clone()),
            ("MUSTER__NATS__CERTIFICATE_FILE", path(&services.clients.worker.certificate_file)),
            ("MUSTER__NATS__KEY_FILE", path(&services.clients.worker.key_file)),
            ("MUSTER__NATS__TLS_FIRST", services.nats.tls_first().to_string()),
            ("MUSTER__DATABASE__URL_FILE", path(&url)),
            ("MUSTER__DATABASE__CA_FILE", ca),
            ("MUSTER__HTTP__ADDRESS", address.to_string()),
        ]);
        if !production {
            variables.extend([
                ("MUSTER__ENVIRONMENT", "test".to_owned()),
                ("MUSTER__REQUIRE_TLS", "true".to_owned()),
                ("MUSTER__LOG__FORMAT", "json".to_owned()),
            ]);
        }
        Ok(Self { program, variables, address, production })
    }

    /// The same with one more variable, or another value of one.
    #[must_use]
    pub fn with(&self, variable: &'static str, value: impl Into<String>) -> Self {
        let mut variables = self.variables.clone();
        variables.insert(variable, value.into());
        Self { program: self.program.clone(), variables, address: self.address, production: self.production }
    }

    /// Whether it is for production.
    pub const fn is_production(&self) -> bool {
        self.production
    }

    /// The same as another user of NATS, for a command that is not the worker's to give.
    #[must_use]
    pub fn as_client(&self, client: &Identity) -> Self {
        self.with("MUSTER__NATS__CERTIFICATE_FILE", client.certificate_file.display().to_string())
            .with("MUSTER__NATS__KEY_FILE", client.key_file.display().to_string())
    }

    /// The same on an address of its own, for a second worker beside the first.
    ///
    /// # Errors
    /// When no port is free.
    pub fn elsewhere(&self) -> Result<Self> {
        let address = free_address()?;
        let mut other = self.with("MUSTER__HTTP__ADDRESS", address.to_string());
        other.address = address;
        Ok(other)
    }

    /// The process of one of the worker's commands, not yet started.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments.split_whitespace());
        // Only what is configured here counts.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MUSTER_")) {
            command.env_remove(name);
        }
        command.envs(&self.variables);
        command
    }

    /// Runs one of the worker's commands, with its arguments parted by spaces, to its end.
    ///
    /// # Errors
    /// When it cannot be run, or takes longer than half a minute.
    pub async fn run(&self, arguments: &str) -> Result<Output> {
        let mut command = tokio::process::Command::from(self.command(arguments));
        command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output());
        output
            .await
            .with_context(|| format!("muster-worker {arguments} did not end within {PATIENCE:?}"))?
            .context("cannot run muster-worker")
    }

    /// Starts it as a process of its own and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready within half a minute; the end of its log is part of the error.
    pub fn serve(&self, services: &Services) -> Result<Worker> {
        let mut worker = self.start(services)?;
        worker.process.wait_until(PATIENCE, || {
            get(self.address, "/readyz").ok().filter(|(status, _)| *status == 200)
        })?;
        Ok(worker)
    }

    /// Starts it as a process of its own and waits for nothing.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(&self, services: &Services) -> Result<Worker> {
        let mut command = self.command("serve");
        let process = Process::start(&services.directory, "worker", &mut command, Signal::SIGTERM)?;
        Ok(Worker { process, address: self.address })
    }

    /// Where the worker's health and metrics are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The worker at work. It is stopped when this value is dropped.
pub struct Worker {
    process: Process,
    address: SocketAddr,
}

/// What has become of the events so far, by the worker's own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventCounts(BTreeMap<String, u64>);

impl EventCounts {
    /// How many came to this outcome.
    #[must_use]
    pub fn of(&self, outcome: &str) -> u64 {
        self.0.get(outcome).copied().unwrap_or(0)
    }

    /// How many had their effect.
    pub fn applied(&self) -> u64 {
        self.of("applied")
    }

    /// How many came again and had none.
    pub fn duplicates(&self) -> u64 {
        self.of("duplicate")
    }

    /// How many were not understood, or given up.
    pub fn lost(&self) -> u64 {
        ["unknown_type", "malformed", "given_up", "not_buried"].map(|outcome| self.of(outcome)).iter().sum()
    }
}

impl std::fmt::Display for EventCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<String> =
            self.0.iter().map(|(outcome, number)| format!("{outcome} {number}")).collect();
        f.write_str(&words.join(", "))
    }
}

impl Worker {
    /// Where its health and metrics are.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads its metrics.
    ///
    /// # Errors
    /// When it does not answer them.
    pub fn event_counts(&self) -> Result<EventCounts> {
        let (status, text) = get(self.address, "/metrics")?;
        if status != 200 {
            bail!("the worker answers {status} for its metrics");
        }
        let mut counts = EventCounts::default();
        for line in text.lines() {
            let labelled = line.strip_prefix("muster_events_total{").and_then(|rest| rest.split_once("} "));
            let Some((labels, number)) = labelled else { continue };
            let outcome = labels.split(',').find_map(|label| label.strip_prefix("outcome=\""));
            let number: u64 = number.trim().parse().context("a counter that is no number")?;
            if let Some(outcome) = outcome.map(|outcome| outcome.trim_end_matches('"')) {
                *counts.0.entry(outcome.to_owned()).or_default() += number;
            }
        }
        Ok(counts)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Asks it for a path by HTTP; answers the status and the body.
    ///
    /// # Errors
    /// When it does not answer within five seconds.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        get(self.address, path)
    }

    /// Its memory now and at most so far, in MiB, where the system tells.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?;
        let mebibytes = |key: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes / 1024)
        };
        Some((mebibytes("VmRSS:")?, mebibytes("VmHWM:")?))
    }

    /// The file that its log goes to.
    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Kills it, as a crash would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Waits until it ends by itself; answers its exit code.
    ///
    /// # Errors
    /// When it does not end within half a minute.
    pub fn wait(&mut self) -> Result<Option<i32>> {
        let status = self.process.wait(PATIENCE)?.context("the worker did not end")?;
        Ok(status.code())
    }

    /// Tells it to stop as an orchestrator would; answers its exit code.
    ///
    /// # Errors
    /// When it cannot be told, or does not stop within half a minute.
    pub fn stop(mut self) -> Result<Option<i32>> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(PATIENCE)?;
        Ok(status.and_then(|status| status.code()))
    }
}

/// An address of this machine whose port nobody listens on now.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

/// Asks for a path by HTTP; answers the status and the body.
///
/// # Errors
/// When there is no answer within five seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    const TIME: Duration = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, TIME)?;
    stream.set_read_timeout(Some(TIME))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").context("an HTTP answer without a body")?;
    Ok((status.context("an HTTP answer without a status")?, body.to_owned()))
}
