use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{Process, RunDirectory, free_port, install};

/// How long a start may take.
const START: Duration = Duration::from_secs(30);

/// The programs of Prometheus.
#[derive(Debug, Clone)]
pub struct PrometheusPrograms {
    /// The server.
    pub server: PathBuf,
    /// The tool that checks rules and asks the server.
    pub promtool: PathBuf,
}

/// Finds Prometheus on PATH, else takes both programs out of Debian's package, without installing it: the package would
/// start a server of its own.
///
/// # Errors
/// When it can neither be found nor had from the package; the error says what helps.
pub fn prometheus_programs() -> Result<PrometheusPrograms> {
    if let (Ok(server), Ok(promtool)) = (which::which("prometheus"), which::which("promtool")) {
        return Ok(PrometheusPrograms { server, promtool });
    }
    let unpacked = install::by_package_file("prometheus").context(
        "Prometheus is missing: install it (on Debian and Ubuntu `sudo apt-get install prometheus`), then run this again",
    )?;
    let bin = unpacked.join("usr/bin");
    Ok(PrometheusPrograms { server: bin.join("prometheus"), promtool: bin.join("promtool") })
}

/// A private Prometheus on a free port of 127.0.0.1, which reads its targets every second. It is stopped when this value
/// is dropped.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    _process: Process,
}

impl Prometheus {
    /// Starts one with these rules that reads `targets`, each a pod's name and address, as Kubernetes' service discovery
    /// would label them.
    ///
    /// # Errors
    /// When it does not start; the error holds the end of its log.
    pub fn start(
        directory: &RunDirectory,
        programs: &PrometheusPrograms,
        targets: &[(&str, SocketAddr)],
        rules: &Path,
    ) -> Result<Self> {
        let home = directory.path().join("prometheus");
        fs::create_dir(&home).context("cannot make Prometheus' directory")?;
        let targets: String = targets
            .iter()
            .map(|(pod, address)| {
                format!(
                    "      - {{ targets: [\"{address}\"], labels: {{ namespace: muster, pod: {pod} }} }}\n"
                )
            })
            .collect();
        let configuration = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{:?}]\nscrape_configs:\n  \
             - job_name: muster-worker\n    static_configs:\n{targets}",
            rules.display().to_string()
        );
        let file = home.join("prometheus.yml");
        fs::write(&file, configuration).context("cannot write Prometheus' configuration")?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new(&programs.server);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
            .arg(format!("--web.listen-address={address}"));
        let mut process = Process::start(directory, "prometheus", &mut command, Signal::SIGTERM)?;
        process.wait_until(START, || {
            crate::worker::get(address, "/-/ready").ok().filter(|(status, _)| *status == 200)
        })?;
        Ok(Self { address, _process: process })
    }

    /// Where it is asked.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
