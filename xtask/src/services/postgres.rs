use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User};
use uuid::Uuid;

use super::run_directory::write_secret;
use super::{Identity, PostgresServer, Process, RunDirectory};

/// The superuser of a private cluster.
const USER: &str = "muster";
/// How long a start may take; recovery after a kill is part of it.
const START: Duration = Duration::from_secs(60);

/// How a private cluster is to be.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The programs.
    pub server: PostgresServer,
    /// The server's certificate; `None` makes one that answers `N` to a request for TLS, for tests of the refusal.
    pub tls: Option<Identity>,
    /// Syncs to disk, as production must; off is faster, and loses data only when the machine crashes.
    pub durable: bool,
    /// PostgreSQL's `shared_buffers`.
    pub shared_buffers: String,
    /// Further settings, each a name and a value, over those that are made here.
    pub settings: Vec<(String, String)>,
    /// The data directory of a stopped cluster of the same major version, to begin with a copy of it. `None` begins with
    /// an empty cluster.
    pub copy_of: Option<PathBuf>,
    /// The superuser's password, for clusters that one URL is to fit; a new one unless given.
    pub password: Option<String>,
}

impl PostgresOptions {
    /// TLS with this certificate, 128 MB of shared buffers, not durable.
    #[must_use]
    pub fn new(server: PostgresServer, tls: Identity) -> Self {
        Self {
            server,
            tls: Some(tls),
            durable: false,
            shared_buffers: "128MB".to_owned(),
            settings: Vec::new(),
            copy_of: None,
            password: None,
        }
    }
}

/// A private PostgreSQL cluster on a free port of 127.0.0.1. Its superuser logs in with a generated password, and, when
/// the cluster has a certificate, over TLS only. It is stopped when this value is dropped.
#[derive(Debug)]
pub struct Postgres {
    // `None` while it is stopped.
    process: Option<Process>,
    server: PostgresServer,
    directory: RunDirectory,
    name: String,
    data: PathBuf,
    owner: Option<User>,
    port: u16,
    password: String,
    tls: bool,
}

impl Postgres {
    /// Makes a cluster in the run's directory under `name` and starts it.
    ///
    /// # Errors
    /// When it cannot be made or does not start; the error holds the end of its log.
    pub fn start(directory: &RunDirectory, name: &str, options: PostgresOptions) -> Result<Self> {
        let data = directory.path().join(name);
        let mut cluster = Self {
            process: None,
            directory: directory.clone(),
            name: name.to_owned(),
            data,
            owner: unprivileged_owner()?,
            port: 0,
            password: options.password.clone().unwrap_or_else(|| Uuid::new_v4().simple().to_string()),
            tls: options.tls.is_some(),
            server: options.server.clone(),
        };
        match &options.copy_of {
            None => {
                cluster.init()?;
                cluster.configure(&options)?;
            }
            Some(original) => {
                cluster.copy(original)?;
                cluster.configure(&options)?;
                cluster.set_password()?;
            }
        }
        // The port is free when it is looked for, but somebody else may take it before PostgreSQL does.
        let mut attempts = 0;
        loop {
            cluster.port = free_port()?;
            attempts += 1;
            match cluster.launch() {
                Err(error) if attempts < 5 && format!("{error:#}").contains("Address already in use") => {}
                launched => return launched.map(|()| cluster),
            }
        }
    }

    fn init(&self) -> Result<()> {
        make_directory(&self.data, self.owner.as_ref())?;
        let password_file = self.directory.path().join(format!("{}-password", self.name));
        self.write_owned(&password_file, &self.password)?;
        // Trigrams of letters beyond ASCII need a UTF-8 locale. Where there is none, ASCII is better than no cluster.
        let mut said = String::new();
        for locale in ["C.UTF-8", "en_US.UTF-8", "C"] {
            let output = self
                .command("initdb")
                .args(["--no-sync", "--encoding=UTF8", "--auth=scram-sha-256", "--username", USER])
                .arg(format!("--locale={locale}"))
                .arg("--pwfile")
                .arg(&password_file)
                .arg("--pgdata")
                .arg(&self.data)
                .stdin(Stdio::null())
                .output()
                .context("cannot run initdb")?;
            if output.status.success() {
                return Ok(());
            }
            said = String::from_utf8_lossy(&output.stderr).into_owned();
        }
        bail!("initdb failed:\n{said}")
    }

    fn copy(&self, original: &Path) -> Result<()> {
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--reflink=auto"]).arg(original).arg(&self.data);
        let output = copy.stdin(Stdio::null()).output().context("cannot run cp")?;
        ensure!(
            output.status.success(),
            "{} cannot be copied: {}",
            original.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    /// Gives the superuser of a copied cluster, which is stopped, the password of this one.
    fn set_password(&self) -> Result<()> {
        let mut single = self.command("postgres");
        single.args(["--single", "-D"]).arg(&self.data).arg("postgres");
        let mut running = single
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run postgres")?;
        if let Some(mut input) = running.stdin.take() {
            writeln!(input, "ALTER USER {USER} PASSWORD '{}'", self.password)
                .context("cannot set a password")?;
        }
        let output = running.wait_with_output().context("cannot wait for postgres")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && !said.contains("ERROR"), "no password could be set:\n{said}");
        Ok(())
    }

    fn configure(&self, options: &PostgresOptions) -> Result<()> {
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        let mut settings = vec![
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("unix_socket_directories", String::new()),
            ("password_encryption", "scram-sha-256".to_owned()),
            ("max_connections", "200".to_owned()),
            ("shared_buffers", options.shared_buffers.clone()),
            ("fsync", on(options.durable)),
            ("full_page_writes", on(options.durable)),
            ("synchronous_commit", on(options.durable)),
            ("max_wal_size", "2GB".to_owned()),
            ("log_line_prefix", "%m [%p] %a ".to_owned()),
            ("log_timezone", "UTC".to_owned()),
            ("timezone", "UTC".to_owned()),
        ];
        let host = match &options.tls {
            Some(identity) => {
                self.install_identity(identity)?;
                settings.push(("ssl", "on".to_owned()));
                settings.push(("ssl_cert_file", "server.pem".to_owned()));
                settings.push(("ssl_key_file", "server.key".to_owned()));
                settings.push(("ssl_min_protocol_version", "TLSv1.2".to_owned()));
                "hostssl"
            }
            None => "host",
        };
        let further = options.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let text: String = settings
            .into_iter()
            .chain(further)
            .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
            .collect();
        self.write_owned(&self.data.join("postgresql.auto.conf"), &text)?;
        let rule = format!("{host} all all 127.0.0.1/32 scram-sha-256\n");
        self.write_owned(&self.data.join("pg_hba.conf"), &rule)
    }

    /// Copies a certificate and its key to where the server reads them; [`Postgres::reload`] makes it use them.
    ///
    /// # Errors
    /// When they cannot be copied.
    pub fn install_identity(&self, identity: &Identity) -> Result<()> {
        for (from, to) in [(&identity.certificate_file, "server.pem"), (&identity.key_file, "server.key")] {
            let content =
                fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
            self.write_owned(&self.data.join(to), &content)?;
        }
        Ok(())
    }

    fn write_owned(&self, path: &Path, content: &str) -> Result<()> {
        write_secret(path, content)?;
        give(path, self.owner.as_ref())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.server.bin.join(program));
        // The working directory may be one that the other user cannot enter.
        command.current_dir(&self.data).env_remove("PGDATA").env_remove("PGPORT");
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        command
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(&self.data).arg("-p").arg(self.port.to_string());
        // SIGINT is PostgreSQL's fast shutdown: sessions are cut off, data is flushed.
        let mut process = Process::start(&self.directory, &self.name, &mut command, Signal::SIGINT)?;
        let pid_file = self.data.join("postmaster.pid");
        let id = process.id().to_string();
        // What pg_ctl does: the last line of this file turns to `ready` when connections are accepted.
        process.wait_until(START, || {
            let text = fs::read_to_string(&pid_file).ok()?;
            let is_ours = text.lines().next() == Some(id.as_str());
            (is_ours && text.lines().last().is_some_and(|line| line.trim() == "ready")).then_some(())
        })?;
        ensure!(
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok(),
            "PostgreSQL is ready but cannot be reached on port {}",
            self.port
        );
        self.process = Some(process);
        Ok(())
    }

    /// Where its data lies.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The process id of its postmaster, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// The programs that it runs.
    #[must_use]
    pub fn server(&self) -> &PostgresServer {
        &self.server
    }

    /// Makes a standby of it, which stays one: it takes no writes and waits for a primary that never comes. It must be
    /// stopped.
    ///
    /// # Errors
    /// When it does not start; the error holds the end of its log.
    pub fn restart_as_standby(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "PostgreSQL runs: stop it first");
        self.write_owned(&self.data.join("standby.signal"), "")?;
        self.restart()
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The superuser's name.
    #[must_use]
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The superuser's URL of a database, password included. It asks for a verified certificate if the cluster has one.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let mode = if self.tls { "verify-full" } else { "disable" };
        format!("postgres://{USER}:{}@localhost:{}/{database}?sslmode={mode}", self.password, self.port)
    }

    /// Makes it read its configuration and certificates again.
    ///
    /// # Errors
    /// When it does not run.
    pub fn reload(&self) -> Result<()> {
        self.process.as_ref().ok_or_else(|| anyhow!("PostgreSQL is stopped"))?.signal(Signal::SIGHUP)
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

    /// Starts it again, on the same port with the same data.
    ///
    /// # Errors
    /// When it runs already or does not start; the error holds the end of its log.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "PostgreSQL runs: stop or kill it first");
        let end = Instant::now() + START;
        loop {
            match self.launch() {
                // After a kill its sessions take a moment to notice, and hold the shared memory until then.
                Err(error)
                    if Instant::now() < end && format!("{error:#}").contains("shared memory block") => {}
                launched => return launched,
            }
        }
    }
}

/// Whom the cluster belongs to: PostgreSQL refuses to run as root.
pub(super) fn unprivileged_owner() -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).context("cannot look up a user")? {
            return Ok(Some(user));
        }
    }
    bail!(
        "PostgreSQL refuses to run as root, and there is no user postgres or nobody: run this as another user"
    )
}

pub(super) fn make_directory(path: &Path, owner: Option<&User>) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    give(path, owner)
}

pub(super) fn give(path: &Path, owner: Option<&User>) -> Result<()> {
    match owner {
        Some(owner) => chown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))
            .with_context(|| format!("cannot give {} to {}", path.display(), owner.name)),
        None => Ok(()),
    }
}

pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}
