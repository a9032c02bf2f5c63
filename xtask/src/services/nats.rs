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

/// How a private NATS server is to be.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The program.
    pub server: NatsServer,
    /// The server's certificate; `None` serves plaintext.
    pub tls: Option<Identity>,
    /// The CA that client certificates must come from; `None` asks for none.
    pub client_ca: Option<PathBuf>,
    /// The TLS handshake comes before the server says anything; needs 2.10.4 or later.
    pub handshake_first: bool,
    /// A web socket port besides, with TLS when the other has it.
    pub websocket: bool,
    /// Who may log in, each to everything unless permissions say otherwise; nobody named lets everybody in.
    pub users: Vec<NatsUser>,
    /// JetStream, stored in files of the run.
    pub jetstream: bool,
    /// The largest message, in bytes.
    pub max_payload: u32,
    /// Further lines of the configuration, such as `accounts`.
    pub further: String,
}

impl NatsOptions {
    /// Plaintext, no authentication, JetStream, 1 MiB messages.
    #[must_use]
    pub fn new(server: NatsServer) -> Self {
        Self {
            server,
            tls: None,
            client_ca: None,
            handshake_first: false,
            websocket: false,
            users: Vec::new(),
            jetstream: true,
            max_payload: 1024 * 1024,
            further: String::new(),
        }
    }

    fn configuration(&self, name: &str, store: &Path, ports: Option<Ports>) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        let port = |port: Option<u16>| port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
        line(format!("server_name: {name}"));
        line(format!("listen: \"127.0.0.1:{}\"", port(ports.map(|ports| ports.client))));
        line(format!("ports_file_dir: {:?}", store.display().to_string()));
        line(format!("max_payload: {}", self.max_payload));
        let tls = self.tls_block();
        if let Some(tls) = &tls {
            let first = if self.handshake_first { "  handshake_first: true\n" } else { "" };
            line(format!("tls {{\n{tls}{first}}}"));
        }
        if self.websocket {
            let listen = format!("127.0.0.1:{}", port(ports.and_then(|ports| ports.websocket)));
            let tls = tls.map_or_else(|| "no_tls: true".to_owned(), |tls| format!("tls {{\n{tls}}}"));
            line(format!("websocket {{\n  listen: \"{listen}\"\n  {tls}\n}}"));
        }
        if self.jetstream {
            line(format!("jetstream {{ store_dir: {:?} }}", store.display().to_string()));
        }
        if !self.users.is_empty() {
            line("authorization { users: [".to_owned());
            for NatsUser { name, password, permissions } in &self.users {
                let permissions = permissions.as_ref().map(|it| format!(", permissions: {it}"));
                line(format!(
                    "  {{ user: {name:?}, password: {password:?}{} }}",
                    permissions.unwrap_or_default()
                ));
            }
            line("] }".to_owned());
        }
        line(self.further.clone());
        text
    }

    fn tls_block(&self) -> Option<String> {
        let identity = self.tls.as_ref()?;
        let mut text = String::new();
        let mut file = |key: &str, path: &Path| {
            text.push_str(&format!("  {key}: {:?}\n", path.display().to_string()));
        };
        file("cert_file", &identity.certificate_file);
        file("key_file", &identity.key_file);
        if let Some(ca) = &self.client_ca {
            file("ca_file", ca);
            text.push_str("  verify: true\n");
        }
        text.push_str("  timeout: 5\n");
        Some(text)
    }
}

/// Somebody who may log in.
#[derive(Debug, Clone)]
pub struct NatsUser {
    /// The name.
    pub name: String,
    /// The password.
    pub password: String,
    /// A `permissions` block of the server's configuration, such as `{ publish: "muster.v1.>" }`.
    pub permissions: Option<String>,
}

impl NatsUser {
    /// One with a generated password who may do everything.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), password: Uuid::new_v4().simple().to_string(), permissions: None }
    }
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    websocket: Option<u16>,
}

/// A private NATS server on a free port of 127.0.0.1. It is stopped when this value is dropped.
#[derive(Debug)]
pub struct Nats {
    // `None` while it is stopped.
    process: Option<Process>,
    options: NatsOptions,
    directory: RunDirectory,
    name: String,
    ports: Option<Ports>,
}

impl Nats {
    /// Starts one whose files lie in the run's directory under `name`.
    ///
    /// # Errors
    /// When it does not start; the error holds the end of its log.
    pub fn start(directory: &RunDirectory, name: &str, options: NatsOptions) -> Result<Self> {
        let mut nats =
            Self { process: None, options, directory: directory.clone(), name: name.to_owned(), ports: None };
        fs::create_dir(nats.store()).context("cannot make the NATS server's directory")?;
        nats.restart()?;
        Ok(nats)
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    fn write_configuration(&self) -> Result<PathBuf> {
        let path = self.directory.path().join(format!("{}.conf", self.name));
        write_secret(&path, &self.options.configuration(&self.name, &self.store(), self.ports))?;
        Ok(path)
    }

    /// Starts it after a stop or a kill, on the same ports with the same data, with the options as they are now.
    ///
    /// # Errors
    /// When it runs already or does not start; the error holds the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the NATS server runs: stop or kill it first");
        let mut command = Command::new(&self.options.server.program);
        command.arg("-c").arg(self.write_configuration()?);
        let mut process = Process::start(&self.directory, &self.name, &mut command, Signal::SIGINT)?;
        let store = self.store();
        let end_of_name = format!("_{}.ports", process.id());
        // The server writes this file once it accepts connections.
        let ports = process.wait_until(START, || {
            let entries = fs::read_dir(&store).ok()?.flatten();
            let mut paths = entries.map(|entry| entry.path());
            let file = paths.find(|path| path.to_string_lossy().ends_with(&end_of_name))?;
            read_ports(&fs::read(file).ok()?)
        })?;
        self.ports = Some(ports);
        self.process = Some(process);
        Ok(())
    }

    /// The options, to be changed before [`Nats::restart`] or [`Nats::reload`].
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
        self.ports.map_or(0, |ports| ports.client)
    }

    /// Its URL, without credentials: `tls://localhost:…`, or `nats://…` when it serves plaintext.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.options.tls.is_some() { "tls" } else { "nats" };
        format!("{scheme}://localhost:{}", self.port())
    }

    /// The URL of its web socket port, if it has one.
    #[must_use]
    pub fn websocket_url(&self) -> Option<String> {
        let scheme = if self.options.tls.is_some() { "wss" } else { "ws" };
        self.ports.and_then(|ports| ports.websocket).map(|port| format!("{scheme}://localhost:{port}"))
    }

    /// The user of that name.
    ///
    /// # Errors
    /// When the options name none.
    pub fn user(&self, name: &str) -> Result<&NatsUser> {
        let user = self.options.users.iter().find(|user| user.name == name);
        user.with_context(|| format!("the NATS server has no user {name}"))
    }

    /// Makes it read its configuration, as the options are now, and its certificates again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&self) -> Result<()> {
        self.write_configuration()?;
        self.process.as_ref().ok_or_else(|| anyhow!("the NATS server is stopped"))?.signal(Signal::SIGHUP)
    }

    /// Makes it leave in lame-duck mode: it tells its clients to go elsewhere, then ends.
    ///
    /// # Errors
    /// When it does not run.
    pub fn lame_duck(&self) -> Result<()> {
        self.process.as_ref().ok_or_else(|| anyhow!("the NATS server is stopped"))?.signal(Signal::SIGUSR2)
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

/// Reads what the server wrote on its ports; `None` while it is not all there.
fn read_ports(file: &[u8]) -> Option<Ports> {
    #[derive(Deserialize)]
    struct Written {
        nats: Vec<String>,
        #[serde(default)]
        websocket: Vec<String>,
    }
    let written: Written = serde_json::from_slice(file).ok()?;
    let port = |urls: &[String]| urls.first()?.rsplit(':').next()?.parse::<u16>().ok();
    Some(Ports { client: port(&written.nats)?, websocket: port(&written.websocket) })
}
