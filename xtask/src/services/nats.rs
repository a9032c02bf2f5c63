use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;
use uuid::Uuid;

use super::run_directory::write_secret;
use super::{Identity, NatsServer, Process, RunDirectory};

/// How long a start may take; recovery of JetStream after a kill is part of it.
const START: Duration = Duration::from_secs(30);
/// The configuration that is shipped: one node, what makes nodes a cluster, and who may do what.
const SHIPPED: [&str; 3] = ["node.conf", "nats.conf", ACCOUNTS];
const ACCOUNTS: &str = "accounts.conf";
/// What a server that is too old does not know; these lines are left out for it.
pub(super) const NOT_FOR_OLD: [&str; 3] = ["min_version:", "handshake_first:", "sync_interval:"];

/// How a private NATS server is to be: as infra/nats ships it, but for what is named here.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The program.
    pub server: NatsServer,
    /// The server's certificate.
    pub tls: Identity,
    /// The CA that client certificates must come from.
    pub client_ca: PathBuf,
    /// Its place among others (`nats.conf`); `None` for a node alone (`node.conf`).
    pub cluster: Option<NatsCluster>,
    /// Differs from what is shipped: these users, each of whom may do everything, log in by password in place of those of
    /// `accounts.conf`. Certificates are asked for all the same.
    pub logins: Vec<NatsUser>,
    /// Differs: it serves plaintext.
    pub plaintext: bool,
    /// Differs: events are synced to disk every two minutes, not before each acknowledgement.
    pub synced_late: bool,
    /// Differs: the largest message, in bytes.
    pub max_payload: Option<u32>,
}

/// Where the nodes of a cluster on this machine listen for each other.
#[derive(Debug, Clone)]
pub struct NatsCluster {
    /// This node's port.
    pub port: u16,
    /// All nodes' ports.
    pub routes: Vec<u16>,
}

impl NatsOptions {
    /// One node, as it is shipped.
    #[must_use]
    pub fn new(server: NatsServer, tls: Identity, client_ca: &Path) -> Self {
        Self {
            server,
            tls,
            client_ca: client_ca.to_owned(),
            cluster: None,
            logins: Vec::new(),
            plaintext: false,
            synced_late: false,
            max_payload: None,
        }
    }

    /// A shipped file with what differs here.
    fn derive(&self, name: &str, text: &str) -> Result<String> {
        let mut text = text.to_owned();
        let mut replace = |from: &str, to: &str| -> Result<()> {
            ensure!(text.contains(from), "infra/nats/{name} no longer has {from:?}");
            text = text.replacen(from, to, 1);
            Ok(())
        };
        match name {
            ACCOUNTS if !self.logins.is_empty() => return Ok(logins(&self.logins)),
            "node.conf" => {
                if !self.logins.is_empty() {
                    replace("verify_and_map: true", "verify: true")?;
                }
                if let Some(bytes) = self.max_payload {
                    replace("max_payload: 1MB", &format!("max_payload: {bytes}"))?;
                }
                if self.synced_late {
                    replace("sync_interval: always", "sync_interval: \"2m\"")?;
                }
                if self.plaintext {
                    let start = text.find("\ntls {\n").context("infra/nats/node.conf has no block tls")?;
                    let (before, block) = text.split_at(start);
                    let (_, after) = block.split_once("\n}\n").context("its block tls does not end")?;
                    text = format!("{before}\n{after}");
                }
            }
            _ => {}
        }
        if !self.server.knows_all_that_is_shipped() {
            let known = |line: &&str| !NOT_FOR_OLD.iter().any(|key| line.trim_start().starts_with(key));
            text = text.lines().filter(known).map(|line| format!("{line}\n")).collect();
        }
        Ok(text)
    }

    /// The variables that infra/nats/README.md lists.
    fn variables(&self, name: &str, store: &Path, port: Option<u16>) -> Vec<(&'static str, String)> {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let port = port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
        let mut variables = vec![
            ("NATS_SERVER_NAME", name.to_owned()),
            ("NATS_LISTEN", format!("\"127.0.0.1:{port}\"")),
            ("NATS_STORE", quoted(store)),
            ("NATS_TLS_CERTIFICATE", quoted(&self.tls.certificate_file)),
            ("NATS_TLS_KEY", quoted(&self.tls.key_file)),
            ("NATS_TLS_CA", quoted(&self.client_ca)),
        ];
        if let Some(NatsCluster { port, routes }) = &self.cluster {
            let routes: Vec<String> =
                routes.iter().map(|port| format!("\"tls://127.0.0.1:{port}\"")).collect();
            variables.push(("NATS_CLUSTER_LISTEN", format!("\"127.0.0.1:{port}\"")));
            variables.push(("NATS_ROUTES", format!("[{}]", routes.join(", "))));
        }
        variables
    }
}

fn logins(users: &[NatsUser]) -> String {
    let lines = users
        .iter()
        .map(|NatsUser { name, password }| format!("    {{ user: {name:?}, password: {password:?} }}\n"));
    format!("authorization {{\n  users: [\n{}  ]\n}}\n", lines.collect::<String>())
}

/// Somebody who logs in by password.
#[derive(Debug, Clone)]
pub struct NatsUser {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl NatsUser {
    /// One with a generated password.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), password: Uuid::new_v4().simple().to_string() }
    }
}

/// A private NATS server on a free port of 127.0.0.1. It is stopped when this value is dropped.
#[derive(Debug)]
pub struct Nats {
    // `None` while it is stopped.
    process: Option<Process>,
    options: NatsOptions,
    directory: RunDirectory,
    name: String,
    port: Option<u16>,
}

impl Nats {
    /// Starts one whose files lie in the run's directory under `name`.
    ///
    /// # Errors
    /// When it does not start; the error holds the end of its log.
    pub fn start(directory: &RunDirectory, name: &str, options: NatsOptions) -> Result<Self> {
        let mut nats =
            Self { process: None, options, directory: directory.clone(), name: name.to_owned(), port: None };
        for directory in [nats.store(), nats.configuration()] {
            fs::create_dir(directory).context("cannot make the NATS server's directories")?;
        }
        nats.write(&SHIPPED)?;
        nats.restart()?;
        Ok(nats)
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    /// The directory with its copy of infra/nats.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join(format!("{}-conf", self.name))
    }

    /// The file that it is started with.
    fn configuration_file(&self) -> PathBuf {
        let file = if self.options.cluster.is_some() { "nats.conf" } else { "node.conf" };
        self.configuration().join(file)
    }

    /// The file that says who may do what.
    #[must_use]
    pub fn accounts_file(&self) -> PathBuf {
        self.configuration().join(ACCOUNTS)
    }

    fn write(&self, files: &[&str]) -> Result<()> {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../infra/nats");
        for file in files {
            let text = fs::read_to_string(shipped.join(file))
                .with_context(|| format!("cannot read infra/nats/{file}"))?;
            write_secret(&self.configuration().join(file), &self.options.derive(file, &text)?)?;
        }
        Ok(())
    }

    /// The variables that its configuration takes from the environment.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        self.options.variables(&self.name, &self.store(), self.port)
    }

    /// Starts it after a stop or a kill, on the same port with the same data, with the options as they are now. Who may do
    /// what stays as it is in its [`Nats::accounts_file`].
    ///
    /// # Errors
    /// When it runs already or does not start; the error holds the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the NATS server runs: stop or kill it first");
        self.write(&["node.conf", "nats.conf"])?;
        let mut command = Command::new(&self.options.server.program);
        command.arg("-c").arg(self.configuration_file());
        command.arg("--ports_file_dir").arg(self.store());
        command.envs(self.variables());
        let mut process = Process::start(&self.directory, &self.name, &mut command, Signal::SIGINT)?;
        let store = self.store();
        let end_of_name = format!("_{}.ports", process.id());
        // The server writes this file once it accepts connections.
        let port = process.wait_until(START, || {
            let entries = fs::read_dir(&store).ok()?.flatten();
            let mut paths = entries.map(|entry| entry.path());
            let file = paths.find(|path| path.to_string_lossy().ends_with(&end_of_name))?;
            read_port(&fs::read(file).ok()?)
        })?;
        self.port = Some(port);
        self.process = Some(process);
        Ok(())
    }

    /// The options, to be changed before [`Nats::restart`].
    pub fn options_mut(&mut self) -> &mut NatsOptions {
        &mut self.options
    }

    /// The program that it runs.
    #[must_use]
    pub fn server(&self) -> &NatsServer {
        &self.options.server
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(0)
    }

    /// Whether clients begin with the handshake.
    #[must_use]
    pub fn tls_first(&self) -> bool {
        self.options.server.knows_all_that_is_shipped()
    }

    /// Its URL, without credentials: `tls://localhost:…`, or `nats://…` when it serves plaintext.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.options.plaintext { "nats" } else { "tls" };
        format!("{scheme}://localhost:{}", self.port())
    }

    /// Makes it read its configuration and certificates again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&self) -> Result<()> {
        self.process.as_ref().ok_or_else(|| anyhow!("the NATS server is stopped"))?.signal(Signal::SIGHUP)
    }

    /// Gives a user of `accounts.conf` another name, so that its certificate is good for nothing any more, and makes the server
    /// read that.
    ///
    /// # Errors
    /// When there is no such user, or the server does not run.
    pub fn rename_user(&self, user: &str, name: &str) -> Result<()> {
        let file = self.accounts_file();
        let accounts = fs::read_to_string(&file)?;
        let named = format!("user: {user:?}");
        ensure!(accounts.contains(&named), "{} has no user {user}", file.display());
        write_secret(&file, &accounts.replace(&named, &format!("user: {name:?}")))?;
        self.reload()
    }

    /// Stops it in good order; the data stays.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Kills it with SIGKILL, as a crash would; the data stays.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }
}

/// Reads from what the server wrote on its ports that of clients; `None` while it is not all there.
fn read_port(file: &[u8]) -> Option<u16> {
    #[derive(Deserialize)]
    struct Written {
        nats: Vec<String>,
    }
    let written: Written = serde_json::from_slice(file).ok()?;
    written.nats.first()?.rsplit(':').next()?.parse().ok()
}
