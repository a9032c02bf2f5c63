use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Process, RunDirectory, free_address, get};

/// How long a start may take.
const START: Duration = Duration::from_secs(30);

/// A private Prometheus on a free port of 127.0.0.1, which reads its targets every second. It is stopped when this value
/// is dropped.
#[derive(Debug)]
pub struct Prometheus {
    /// Where it is asked.
    pub address: SocketAddr,
    _process: Process,
}

impl Prometheus {
    /// Starts one with these rules that reads `targets`, each a pod's name and address, as Kubernetes' service discovery
    /// would label them.
    pub fn start(
        directory: &RunDirectory,
        program: &Path,
        targets: &[(&str, SocketAddr)],
        rules: &Path,
    ) -> Result<Self> {
        let home = directory.path().join("prometheus");
        fs::create_dir(&home).context("cannot make Prometheus' directory")?;
        let target = |(pod, address): &(&str, SocketAddr)| json!({"targets": [address], "labels": {"namespace": "muster", "pod": pod}});
        let targets: Value = targets.iter().map(target).collect();
        // JSON is YAML.
        let configuration = include_str!("prometheus.yml")
            .replace("RULES", &json!(rules).to_string())
            .replace("TARGETS", &targets.to_string());
        let file = home.join("prometheus.yml");
        fs::write(&file, configuration).context("cannot write Prometheus' configuration")?;
        let address = free_address()?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let mut process = Process::start(directory, "prometheus", &mut command, Signal::SIGTERM)?;
        process.wait_until(START, || get(address, "/-/ready").ok().filter(|(status, _)| *status == 200))?;
        Ok(Self { address, _process: process })
    }
}
