use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use muster_domain::Version;

use crate::tool::{WrongDigest, fetched, install_package, on_path, output};

/// The oldest PostgreSQL that Muster supports.
const POSTGRES_FLOOR: Version = muster_storage::SERVER_FLOOR.least;
/// The oldest nats-server without a known advisory that concerns Muster.
const NATS_FLOOR: Version = muster_messaging::connection::SERVER_FLOOR.advised;
/// Where packages put the directories of PostgreSQL's versions.
const POSTGRES_PARENTS: [&str; 5] =
    ["/usr/lib/postgresql", "/usr", "/usr/local", "/opt/homebrew/opt", "/usr/local/opt"];

/// A server's program.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its path.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
}

impl Server {
    /// The version is the first dotted number that it says of itself, such as the 15.20 in
    /// `postgres (PostgreSQL) 15.20 (Debian …)`.
    fn at(program: PathBuf) -> Option<Self> {
        let printed = output(Command::new(&program).arg("--version")).ok()?;
        let version = printed.split_whitespace().find_map(Version::parse)?;
        Some(Self { program, version })
    }

    fn postgres(bin: &Path) -> Option<Self> {
        // A link such as /usr/local/bin/initdb leads to the real directory, where the rest of PostgreSQL lies beside it.
        let initdb = fs::canonicalize(bin.join("initdb")).ok()?;
        Self::at(initdb.with_file_name("postgres")).filter(|found| found.version >= POSTGRES_FLOOR)
    }

    /// The PostgreSQL that is first on PATH, else the newest that a package put into a directory of its version.
    fn installed_postgres() -> Option<Self> {
        let directories = POSTGRES_PARENTS.iter().flat_map(fs::read_dir).flatten().flatten();
        let versions = || directories.filter_map(|entry| Self::postgres(&entry.path().join("bin")));
        let on_path = on_path("initdb").find_map(|initdb| Self::postgres(initdb.parent()?));
        on_path.or_else(|| versions().max_by_key(|found| found.version))
    }

    /// The directory of its programs.
    pub fn bin(&self) -> &Path {
        self.program.parent().unwrap_or(Path::new("."))
    }
}

/// Finds PostgreSQL 15 or later: `MUSTER_POSTGRES_BIN` names its directory, else it is on this machine, else it is fetched.
pub fn postgres_server() -> Result<Server> {
    if let Some(bin) = env::var_os("MUSTER_POSTGRES_BIN") {
        return Server::postgres(Path::new(&bin)).with_context(|| {
            format!("MUSTER_POSTGRES_BIN={} is no PostgreSQL {POSTGRES_FLOOR} or later", bin.display())
        });
    }
    if let Some(found) = Server::installed_postgres() {
        return Ok(found);
    }
    let found = match fetched("postgresql") {
        Ok(bin) => Ok(Server::postgres(&bin)),
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        Err(error) => install_package("postgresql").map_err(|_| error).map(|()| Server::installed_postgres()),
    };
    found.and_then(|found| found.context("what was fetched does not run here")).context(
        "PostgreSQL is missing: install it (on Debian and Ubuntu `sudo apt-get install postgresql`), then run this again",
    )
}

/// Finds nats-server: `MUSTER_NATS_SERVER` names one of any version, else the newest of this machine serves, if no advisory
/// concerns it, else one is fetched.
pub fn nats_server() -> Result<Server> {
    if let Some(program) = env::var_os("MUSTER_NATS_SERVER") {
        return Server::at(PathBuf::from(&program)).with_context(|| {
            format!("MUSTER_NATS_SERVER={} is no nats-server that runs", program.display())
        });
    }
    let go = env::home_dir().map(|home| home.join("go/bin/nats-server"));
    let here = on_path("nats-server").chain(go).filter_map(Server::at);
    if let Some(found) = here.max_by_key(|found| found.version).filter(|found| found.version >= NATS_FLOOR) {
        return Ok(found);
    }
    let bin = fetched("nats-server").with_context(|| {
        format!("nats-server {NATS_FLOOR} or later is missing: name one by MUSTER_NATS_SERVER, then run this again")
    })?;
    Server::at(bin.join("nats-server")).context("the nats-server that was fetched does not run here")
}
