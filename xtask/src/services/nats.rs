use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::certificates::{Authority, Identity, current};
use super::process::{Restartable, RunDirectory, free_address, write_secret};
use crate::tool::{Server, nats_server};

/// How a private NATS server is to be: as infra/nats ships it, but for what is changed here.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// The program.
    pub server: Server,
    /// The server's certificate.
    pub tls: Identity,
    /// The CA that client certificates must come from.
    pub client_ca: PathBuf,
    /// This node's port and all nodes' in a cluster (`nats.conf`); `None` for a node alone (`node.conf`).
    pub cluster: Option<(u16, Vec<u16>)>,
    /// The text of `node.conf`, in which the variables of infra/nats/README.md stand for places.
    pub node: String,
    /// The text of `accounts.conf`.
    pub accounts: String,
}

impl NatsOptions {
    /// One node, as it is shipped.
    pub fn new(server: Server, tls: Identity, client_ca: &Path) -> Self {
        let node = include_str!("../../../infra/nats/node.conf").to_owned();
        let accounts = include_str!("../../../infra/nats/accounts.conf").to_owned();
        Self { server, tls, client_ca: client_ca.to_owned(), cluster: None, node, accounts }
    }

    /// So many nodes as they are shipped, with certificates for the names that the manifests dial; several are a cluster.
    pub fn nodes(authority: &Authority, nodes: usize) -> Result<Vec<Self>> {
        let server = nats_server()?;
        let routes = (0..nodes).map(|_| Ok(free_address()?.port())).collect::<Result<Vec<u16>>>()?;
        let node = |(number, &port): (usize, &u16)| {
            let name = format!("nats-{number}");
            let hosts = ["localhost", "127.0.0.1", "::1", &format!("{name}.nats.nats.svc")];
            let identity = authority.issue(&name, &hosts, current())?;
            let mut options = Self::new(server.clone(), identity, authority.certificate_file());
            options.cluster = (nodes > 1).then(|| (port, routes.clone()));
            Ok(options)
        };
        routes.iter().enumerate().map(node).collect()
    }

    /// Changes `node.conf`, which must have the text `from`.
    pub fn change(&mut self, from: &str, to: &str) -> Result<()> {
        ensure!(self.node.contains(from), "infra/nats/node.conf no longer has {from:?}");
        self.node = self.node.replacen(from, to, 1);
        Ok(())
    }
}

/// A private NATS server.
pub type Nats = Restartable<NatsOptions>;

impl Nats {
    /// Starts one whose files lie in the run's directory under `name`.
    pub fn start(directory: &RunDirectory, name: &str, options: NatsOptions) -> Result<Self> {
        let mut nats = Self::new(directory, name, options);
        for directory in [nats.data(), nats.configuration()] {
            fs::create_dir(directory).context("cannot make the NATS server's directories")?;
        }
        write_secret(&nats.configuration().join("accounts.conf"), &nats.options.accounts)?;
        nats.restart()?;
        Ok(nats)
    }

    /// Starts the nodes that [`NatsOptions::nodes`] answers: `nats-0` and so on.
    pub fn start_nodes(directory: &RunDirectory, nodes: Vec<NatsOptions>) -> Result<Vec<Self>> {
        let nodes = nodes.into_iter().enumerate();
        nodes.map(|(number, options)| Self::start(directory, &format!("nats-{number}"), options)).collect()
    }

    /// The directory with its copy of infra/nats.
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join(format!("{}-conf", self.name))
    }

    /// The variables that its configuration takes from the environment, as infra/nats/README.md lists them.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let listen = |port: i32| format!("\"127.0.0.1:{port}\"");
        // The server finds a free port by itself when it first starts.
        let port = if self.port == 0 { -1 } else { self.port.into() };
        let mut variables = vec![
            ("NATS_SERVER_NAME", self.name.clone()),
            ("NATS_LISTEN", listen(port)),
            ("NATS_STORE", quoted(&self.data())),
            ("NATS_TLS_CERTIFICATE", quoted(&self.options.tls.certificate_file)),
            ("NATS_TLS_KEY", quoted(&self.options.tls.key_file)),
            ("NATS_TLS_CA", quoted(&self.options.client_ca)),
        ];
        if let Some((port, routes)) = &self.options.cluster {
            let routes: Vec<String> = routes.iter().map(|port| format!("tls://localhost:{port}")).collect();
            variables.push(("NATS_CLUSTER_LISTEN", listen((*port).into())));
            variables.push(("NATS_ROUTES", format!("{routes:?}")));
        }
        variables
    }

    /// Starts it after a stop or a kill, on the same port with the options as they are now, but for `accounts`.
    pub fn restart(&mut self) -> Result<()> {
        let configuration = self.configuration();
        write_secret(&configuration.join("node.conf"), &self.options.node)?;
        write_secret(&configuration.join("nats.conf"), include_str!("../../../infra/nats/nats.conf"))?;
        let file = if self.options.cluster.is_some() { "nats.conf" } else { "node.conf" };
        let mut command = Command::new(&self.options.server.program);
        command.arg("-c").arg(configuration.join(file));
        command.arg("--ports_file_dir").arg(self.data()).envs(self.variables());
        let store = self.data();
        // The server writes this file once it accepts connections.
        self.port = self.run(&mut command, |id| {
            let mut paths = fs::read_dir(&store).ok()?.flatten().map(|entry| entry.path());
            let file = paths.find(|path| path.to_string_lossy().ends_with(&format!("_{id}.ports")))?;
            let written: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
            written.pointer("/nats/0")?.as_str()?.rsplit(':').next()?.parse().ok()
        })?;
        Ok(())
    }

    /// Its URL, without credentials.
    pub fn url(&self) -> String {
        format!("tls://localhost:{}", self.port)
    }

    /// Gives a user another name in its copy of `accounts.conf`, so that its certificate is good for nothing any more.
    pub fn rename_user(&self, user: &str, name: &str) -> Result<()> {
        self.change_accounts(&format!("user: {user:?}"), &format!("user: {name:?}"))
    }

    /// Changes its copy of `accounts.conf`, which must have the text `from`, and has it read.
    pub fn change_accounts(&self, from: &str, to: &str) -> Result<()> {
        let file = self.configuration().join("accounts.conf");
        let accounts = fs::read_to_string(&file)?;
        ensure!(accounts.contains(from), "{} has no {from}", file.display());
        write_secret(&file, &accounts.replace(from, to))?;
        self.reload()
    }
}
