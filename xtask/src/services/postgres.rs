use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::unistd::{Uid, User};
use uuid::Uuid;

use super::certificates::Identity;
use super::process::{Restartable, RunDirectory, free_address, write_secret};
use crate::tool::{Server, output};

/// How long a start is tried again.
const PATIENCE: Duration = Duration::from_secs(60);
/// In the data directory: the superuser's password.
const PASSWORD: &str = "password";
/// The encoding follows from the locale: UTF-8, since names are of any script.
const LOCALE: &str = if cfg!(target_os = "macos") { "en_US.UTF-8" } else { "C.UTF-8" };

/// How a private cluster is to be.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// The program.
    pub server: Server,
    /// The server's certificate; `None` makes one that answers `N` to a request for TLS, for tests of the refusal.
    pub tls: Option<Identity>,
    /// Syncs to disk, as production must; off is faster, and loses data only when the machine crashes.
    pub durable: bool,
    /// Further settings, each a name and a value, over those that are made here.
    pub settings: Vec<(String, String)>,
    /// The data of a stopped cluster of the same major version, to begin with a copy of it and its password.
    pub copy_of: Option<PathBuf>,
    /// The superuser's password; that of another cluster if one URL is to fit both.
    pub password: String,
}

impl PostgresOptions {
    /// TLS with this certificate, not durable. `pg_stat_statements`, where installed, counts where a database's setting says so.
    pub fn new(server: Server, tls: Identity) -> Self {
        let password = Uuid::new_v4().simple().to_string();
        let counting = [
            ("shared_preload_libraries", "pg_stat_statements"),
            ("pg_stat_statements.track", "none"),
            ("pg_stat_statements.track_utility", "off"),
        ];
        let counting = counting.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let settings = if server.has_library("pg_stat_statements") { counting } else { Vec::new() };
        Self { server, tls: Some(tls), durable: false, settings, copy_of: None, password }
    }
}

/// A private PostgreSQL cluster. Its superuser logs in with a generated password, and over TLS only if it has that.
pub type Postgres = Restartable<PostgresOptions>;

impl Postgres {
    /// The superuser's name.
    pub const USER: &str = "muster";

    /// Makes a cluster in the run's directory under `name` and starts it.
    pub fn start(directory: &RunDirectory, name: &str, options: PostgresOptions) -> Result<Self> {
        let mut cluster = Self::new(directory, name, options);
        match &cluster.options.copy_of {
            None => cluster.init()?,
            Some(original) => {
                let mut copy = Command::new("cp");
                output(copy.args(["--archive", "--reflink=auto"]).arg(original).arg(cluster.data()))?;
                cluster.options.password = fs::read_to_string(cluster.data().join(PASSWORD))?;
            }
        }
        cluster.configure()?;
        cluster.restart()?;
        Ok(cluster)
    }

    fn init(&self) -> Result<()> {
        let data = self.data();
        let password = format!("{}.password", self.name);
        let password = self.directory.secret_file(&password, &self.options.password)?;
        fs::create_dir(&data)?;
        give_to_owner(&password)?;
        give_to_owner(&data)?;
        let mut initdb = self.command("initdb")?;
        initdb.args(["--no-sync", "--encoding=UTF8", "--auth=scram-sha-256", "--username", Self::USER]);
        initdb.args(["--locale", LOCALE, "--pgdata"]).arg(&data).arg("--pwfile").arg(&password);
        output(&mut initdb)?;
        fs::rename(password, data.join(PASSWORD)).context("cannot keep the password")
    }

    fn configure(&self) -> Result<()> {
        let options = &self.options;
        let (durable, ssl) = (options.durable, options.tls.is_some());
        let mut switches = format!("fsync = {durable}\nfull_page_writes = {durable}\n");
        switches += &format!("synchronous_commit = {durable}\nssl = {ssl}\n");
        let settings = options.settings.iter();
        let further = settings.map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")));
        let text = [include_str!("postgresql.conf"), &switches, &further.collect::<String>()].concat();
        write_secret(&self.data().join("postgresql.auto.conf"), &text)?;
        let host = if options.tls.is_some() { "hostssl" } else { "host" };
        let rule = format!("{host} all all 127.0.0.1/32 scram-sha-256\n");
        write_secret(&self.data().join("pg_hba.conf"), &rule)?;
        options.tls.as_ref().map_or(Ok(()), |identity| self.install_identity(identity))?;
        give_to_owner(&self.data())
    }

    /// Copies a certificate and its key to where the server reads them; [`Postgres::reload`] makes it use them.
    pub fn install_identity(&self, identity: &Identity) -> Result<()> {
        for (from, to) in [(&identity.certificate_file, "server.pem"), (&identity.key_file, "server.key")] {
            let to = self.data().join(to);
            write_secret(&to, &fs::read_to_string(from)?)?;
            give_to_owner(&to)?;
        }
        Ok(())
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.options.server.bin().join(program));
        // The working directory may be one that the other user cannot enter.
        command.current_dir(self.data()).env_remove("PGDATA").env_remove("PGPORT");
        run_as_owner(&mut command)?;
        Ok(command)
    }

    /// Starts it, after a stop or a kill on the same port with the same data. Another process may take a free port before it
    /// does; and the sessions of one that was killed take a moment to notice, and hold the shared memory until then.
    pub fn restart(&mut self) -> Result<()> {
        let (end, is_new) = (Instant::now() + PATIENCE, self.port == 0);
        loop {
            if is_new {
                self.port = free_address()?.port();
            }
            let Err(error) = self.launch() else { return Ok(()) };
            let passes = ["Address already in use", "shared memory block"];
            if Instant::now() > end || !passes.iter().any(|reason| format!("{error:#}").contains(reason)) {
                return Err(error);
            }
        }
    }

    fn launch(&mut self) -> Result<()> {
        let (data, mut command) = (self.data(), self.command("postgres")?);
        command.arg("-D").arg(&data).arg("-p").arg(self.port.to_string());
        // What pg_ctl does: the last line of this file turns to `ready` when connections are accepted.
        self.run(&mut command, |id| {
            let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
            let is_ours = text.lines().next() == Some(id.to_string().as_str());
            (is_ours && text.lines().last().is_some_and(|line| line.trim() == "ready")).then_some(())
        })
    }

    /// The superuser's URL of a database, password included. It asks for a verified certificate if the cluster has one.
    pub fn url(&self, database: &str) -> String {
        let mode = if self.options.tls.is_some() { "verify-full" } else { "disable" };
        let (user, password) = (Self::USER, &self.options.password);
        format!("postgres://{user}:{password}@localhost:{}/{database}?sslmode={mode}", self.port)
    }
}

/// Who runs PostgreSQL and PgBouncer and owns their files in place of root, as whom they refuse to run.
fn owner() -> Result<Option<User>> {
    let mut users = ["postgres", "nobody"].into_iter().filter_map(|name| User::from_name(name).ok()?);
    let user = || users.next().context("this is root, and there is no user postgres or nobody");
    Uid::effective().is_root().then(user).transpose()
}

/// Has a command run as the owner of PostgreSQL's files.
pub fn run_as_owner(command: &mut Command) -> Result<()> {
    if let Some(user) = owner()? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    Ok(())
}

/// Makes a file, or a directory with all in it, the property of who runs PostgreSQL.
pub fn give_to_owner(path: &Path) -> Result<()> {
    let Some(user) = owner()? else { return Ok(()) };
    let owner = format!("{}:{}", user.uid, user.gid);
    output(Command::new("chown").args(["-R", &owner]).arg(path)).map(drop)
}
