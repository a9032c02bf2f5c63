use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nkeys::KeyPair;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};
use uuid::Uuid;
use xtask::services::{
    Authority, Nats, NatsOptions, Postgres, Process, RunDirectory, Services, free_address,
};
use xtask::tool::nats_server;

use crate::cargo::{self, Group};
use crate::demo::GUILD;
use crate::observability;

const START: Duration = Duration::from_secs(30);
/// What an operator's shell knows of the servers.
const PROFILE: &str = "xtask/src/runbook/profile.sh";

/// What the runbooks' commands stand on: the servers as they are shipped. The worker is started by the commands themselves.
pub(crate) struct Setting {
    /// What differs from run to run in the operator's shell.
    variables: BTreeMap<&'static str, OsString>,
    pub(crate) nats_urls: String,
    /// Where Prometheus answers, if it was started.
    pub(super) prometheus: String,
    // In the order in which they are stopped.
    _prometheus: Option<Process>,
    _logins: Nats,
    pub(crate) services: Services,
}

impl Setting {
    /// Starts PostgreSQL and this many nodes of NATS, and Prometheus where its program is given.
    pub(crate) fn new(worker: &Path, nodes: usize, prometheus: Option<&Path>) -> Result<Self> {
        let services = Services::start(nodes, true)?;
        let Services { nats, postgres, authority, directory, .. } = &services;
        fs::create_dir(directory.path().join("secrets"))?;
        directory.secret_file("pgpass", &format!("*:*:*:*:{}\n", postgres.options.password))?;
        let logins = with_logins(directory, authority)?;
        let nats_urls = [nats].into_iter().chain(&services.other_nodes).map(Nats::url);
        let nats_urls = nats_urls.collect::<Vec<_>>().join(",");
        let (first, second, own) = (free_address()?, free_address()?, free_address()?);
        let servers = [&nats.options.server, &postgres.options.server].map(|server| server.program.as_path());
        let programs = [worker].into_iter().chain(servers).chain(prometheus);
        let mut variables = BTreeMap::from([
            ("BASH_ENV", cargo::root().join(PROFILE).into()),
            ("STATE", directory.path().into()),
            ("PROGRAMS", env::join_paths(programs.filter_map(Path::parent))?),
            ("WORKER", format!("http://{first}").into()),
            ("WORKER_2", format!("http://{second}").into()),
            ("PROMETHEUS", format!("http://{own}").into()),
            ("GUILD", GUILD.into()),
            ("NATS_PORT", nats.port.to_string().into()),
            ("NATS_URLS", nats_urls.clone().into()),
            ("NATS_NODES", nodes.to_string().into()),
            ("NATS_CONF", nats.configuration().into()),
            ("LOGINS", format!("localhost:{}", logins.port).into()),
            ("LOGINS_USERS", logins.configuration().join("accounts.conf").into()),
            ("POSTGRES_PORT", postgres.port.to_string().into()),
            ("POSTGRES_USER", Postgres::USER.into()),
        ]);
        // What the server's own check of its configuration reads.
        variables.extend(nats.variables().into_iter().map(|(name, value)| (name, value.into())));
        let start = |program| start_prometheus(program, directory, [own, first, second]);
        let _prometheus = prometheus.map(start).transpose()?;
        let prometheus = format!("http://{own}");
        Ok(Self { variables, nats_urls, prometheus, _prometheus, _logins: logins, services })
    }

    pub(crate) fn shell(&self) -> Result<Shell> {
        Shell::start(&self.variables, self.services.directory.path())
    }
}

/// A server that differs from what is shipped in that its users log in by password or NKey, with the files for that.
fn with_logins(directory: &RunDirectory, ca: &Authority) -> Result<Nats> {
    for name in ["issued-nkey", "next-nkey"] {
        let pair = KeyPair::new_user();
        directory.secret_file(&format!("{name}.nk"), &pair.seed().context("an NKey without a seed")?)?;
        fs::write(directory.path().join(format!("{name}.pub")), pair.public_key())?;
    }
    let password = Uuid::new_v4().simple().to_string();
    directory.secret_file("secrets/worker-nats-password", &password)?;
    let mut options = NatsOptions::new(nats_server()?, ca.server("logins")?, ca.certificate_file());
    // Certificates are asked for all the same.
    options.change("verify_and_map: true", "verify: true")?;
    let user = format!("    {{ user: \"worker\", password: {password:?} }}\n");
    options.accounts = format!("authorization {{\n  users: [\n{user}  ]\n}}\n");
    Nats::start(directory, "logins", options)
}

/// Starts a Prometheus with the shipped rules, which reads two workers, labelled as Kubernetes' service discovery would.
fn start_prometheus(
    program: &Path,
    directory: &RunDirectory,
    [address, first, second]: [SocketAddr; 3],
) -> Result<Process> {
    let home = directory.path().join("prometheus");
    fs::create_dir(&home)?;
    let target = |pod, it| json!({"targets": [it], "labels": {"namespace": "muster", "pod": pod}});
    let targets = json!([target("worker-0", first), target("worker-1", second)]);
    // JSON is YAML.
    let configuration = include_str!("prometheus.yml")
        .replace("RULES", &json!(cargo::root().join(observability::RULES)).to_string())
        .replace("TARGETS", &targets.to_string());
    fs::write(home.join("prometheus.yml"), configuration)?;
    let mut command = Command::new(program);
    command.current_dir(home).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
    command.arg(format!("--web.listen-address={address}"));
    let mut process = Process::start(directory, "prometheus", &mut command, Signal::SIGTERM)?;
    process.wait_until_ok(START, address, "/-/ready")?;
    Ok(process)
}

/// One bash that runs block after block, so that what one sets the next one finds. All of it ends when it is dropped.
pub(crate) struct Shell {
    input: ChildStdin,
    ended: Lines<BufReader<ChildStdout>>,
    directory: PathBuf,
    blocks: usize,
    _group: Group,
}

impl Shell {
    /// Starts one that knows these variables and keeps what blocks print in this directory.
    pub(crate) fn start(variables: &BTreeMap<&'static str, OsString>, directory: &Path) -> Result<Self> {
        let mut command = cargo::command("bash", &["--noprofile", "--norc", "-euo", "pipefail"]);
        command.envs(variables).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut group = Group::spawn(&mut command)?;
        let input = group.0.stdin.take().context("bash has no input")?;
        let output = group.0.stdout.take().context("bash has no output")?;
        let directory = directory.join("blocks");
        fs::create_dir(&directory)?;
        Ok(Self { input, ended: BufReader::new(output).lines(), directory, blocks: 0, _group: group })
    }

    /// Runs one block, and answers what it printed, as a terminal would show it. After one that fails the shell is gone.
    pub(crate) async fn run(&mut self, script: &str, patience: Duration) -> Result<String> {
        self.blocks += 1;
        let file = self.directory.join(format!("{}.sh", self.blocks));
        let output = file.with_extension("out");
        fs::write(&file, script)?;
        let line = format!("source {} </dev/null >{} 2>&1\necho ended\n", file.display(), output.display());
        self.input.write_all(line.as_bytes()).await.context("the shell has ended")?;
        let ended = tokio::time::timeout(patience, self.ended.next_line()).await;
        let printed = String::from_utf8_lossy(&fs::read(&output).unwrap_or_default()).into_owned();
        let ended = ended.with_context(|| format!("not done in {patience:?}, having printed:\n{printed}"))?;
        ensure!(ended?.is_some(), "it failed, having printed:\n{printed}");
        Ok(printed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blocks_share_a_shell_until_one_fails_or_hangs() {
        let directory = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(20);
        let mut shell = Shell::start(&BTreeMap::from([("GIVEN", "given".into())]), directory.path()).unwrap();
        assert_eq!(shell.run("now=$GIVEN\nsay() { echo \"$now\"; }\n", patience).await.unwrap(), "");
        assert_eq!(shell.run("say\nsay >&2\n", patience).await.unwrap(), "given\ngiven\n");
        let error = shell.run("echo begun\nsleep 5\n", Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("begun"), "{error:#}");

        let mut shell = Shell::start(&BTreeMap::new(), &directory.path().join("blocks")).unwrap();
        let error = shell.run("echo before\nfalse | true\necho after\n", patience).await.unwrap_err();
        assert!(error.to_string().ends_with("printed:\nbefore\n"), "{error:#}");
        assert!(shell.run("true", patience).await.is_err());
    }
}
