use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use muster_domain::Version;

use super::install;

/// The oldest PostgreSQL that Muster supports.
const POSTGRES_FLOOR: Version = muster_storage::SERVER_FLOOR.least;
/// The oldest nats-server without a known advisory that concerns Muster.
const NATS_FLOOR: Version = muster_messaging::connection::SERVER_FLOOR.advised;
/// The oldest nats-server that was seen to take infra/nats whole.
const NATS_SHIPPED: Version = Version([2, 10, 26]);

/// Names the directory of PostgreSQL's programs.
const POSTGRES_VARIABLE: &str = "MUSTER_POSTGRES_BIN";
/// Names the nats-server program.
const NATS_VARIABLE: &str = "MUSTER_NATS_SERVER";

/// The first dotted number in `text`, such as the 15.20 in `postgres (PostgreSQL) 15.20 (Debian 15.20-0)`.
fn version_in(text: &str) -> Option<Version> {
    text.split_whitespace().find_map(Version::parse)
}

fn version_of(program: &Path) -> Option<Version> {
    let output =
        Command::new(program).arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| version_in(&String::from_utf8_lossy(&output.stdout))).flatten()
}

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

/// The pgbouncer program.
#[derive(Debug, Clone)]
pub struct PgBouncerServer {
    /// Its path.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
}

impl PgBouncerServer {
    fn at(program: &Path) -> Option<Self> {
        version_of(program).map(|version| Self { program: program.to_owned(), version })
    }
}

impl PostgresServer {
    fn at(bin: &Path) -> Option<Self> {
        // A link such as /usr/local/bin/initdb leads to the real directory, where the rest of PostgreSQL lies beside it.
        let bin = fs::canonicalize(bin.join("initdb")).ok()?.parent()?.to_owned();
        let version = version_of(&bin.join("postgres"))?;
        (version >= POSTGRES_FLOOR && version_of(&bin.join("initdb")) == Some(version))
            .then_some(Self { bin, version })
    }
}

impl NatsServer {
    fn at(program: &Path) -> Option<Self> {
        version_of(program).map(|version| Self { program: program.to_owned(), version })
    }

    /// Whether it takes the configuration of infra/nats whole. An older one does without `handshake_first` and others.
    #[must_use]
    pub fn knows_all_that_is_shipped(&self) -> bool {
        self.version >= NATS_SHIPPED
    }
}

/// Finds PostgreSQL 15 or later, else installs it.
///
/// # Errors
/// When there is none and none can be installed, or `MUSTER_POSTGRES_BIN` names none; the error says what helps.
pub fn postgres_server() -> Result<PostgresServer> {
    if let Some(bin) = env::var_os(POSTGRES_VARIABLE) {
        return PostgresServer::at(Path::new(&bin)).with_context(|| {
            format!(
                "{POSTGRES_VARIABLE}={} holds no initdb and postgres of version {POSTGRES_FLOOR} or later",
                bin.display()
            )
        });
    }
    if let Some(found) = find_postgres() {
        return Ok(found);
    }
    if install::by_package_manager("postgresql")
        && let Some(found) = find_postgres()
    {
        return Ok(found);
    }
    match install::by_wheel("postgresql") {
        Ok(Some(bin)) => {
            PostgresServer::at(&bin).context("the PostgreSQL that was fetched does not run here")
        }
        Ok(None) => bail!("PostgreSQL is missing: {}", install::command_for("postgresql")),
        Err(error) => {
            Err(error.context(format!("PostgreSQL is missing: {}", install::command_for("postgresql"))))
        }
    }
}

fn find_postgres() -> Option<PostgresServer> {
    on_path("initdb").filter_map(|program| PostgresServer::at(program.parent()?)).next().or_else(|| {
        let usual = [
            numbered("/usr/lib/postgresql", "", "bin"),
            numbered("/usr", "pgsql-", "bin"),
            vec![PathBuf::from("/usr/local/pgsql/bin")],
            numbered("/opt/homebrew/opt", "postgresql@", "bin"),
            numbered("/usr/local/opt", "postgresql@", "bin"),
        ];
        usual.into_iter().flatten().find_map(|bin| PostgresServer::at(&bin))
    })
}

/// Finds the newest nats-server; fetches a newer one when it is older than 2.12.6, or there is none. Where none can be
/// fetched an old one serves, with a reduced configuration ([`NatsServer::knows_all_that_is_shipped`]).
///
/// # Errors
/// When there is none and none can be installed, or `MUSTER_NATS_SERVER` names none; the error says what helps.
pub fn nats_server() -> Result<NatsServer> {
    if let Some(program) = env::var_os(NATS_VARIABLE) {
        return NatsServer::at(Path::new(&program))
            .with_context(|| format!("{NATS_VARIABLE}={} is no nats-server that runs", program.display()));
    }
    let found = find_nats();
    if let Some(found) = found.as_ref().filter(|found| found.version >= NATS_FLOOR) {
        return Ok(found.clone());
    }
    let mut wheel = install::by_wheel("nats-server");
    // What package managers have is old, so that pip is worth being installed for the wheel.
    if wheel.is_err() && !install::has_pip() && install::by_package_manager("python3-pip") {
        wheel = install::by_wheel("nats-server");
    }
    let fetched = wheel.map(|bin| NatsServer::at(&bin?.join("nats-server")));
    match (fetched, found) {
        (Ok(Some(fetched)), _) => Ok(fetched),
        (_, Some(found)) => Ok(told_of(found)),
        (fetched, None) => {
            if install::by_package_manager("nats-server")
                && let Some(found) = find_nats()
            {
                return Ok(told_of(found));
            }
            let remedy = format!("nats-server is missing: {}", install::command_for("nats-server"));
            match fetched {
                Err(error) => Err(error.context(remedy)),
                Ok(_) => bail!(remedy),
            }
        }
    }
}

/// Says what an old server costs.
fn told_of(old: NatsServer) -> NatsServer {
    if old.version < NATS_FLOOR {
        let version = old.version;
        println!(
            "nats-server {version} serves here; production wants {NATS_FLOOR} or later, which could not be fetched"
        );
    }
    if !old.knows_all_that_is_shipped() {
        println!(
            "REDUCED: infra/nats is used without {}, which it does not know",
            super::nats::NOT_FOR_OLD.join(" ")
        );
    }
    old
}

fn find_nats() -> Option<NatsServer> {
    let usual = ["/usr/local/bin", "/usr/sbin", "/usr/bin", "/opt/homebrew/bin"]
        .into_iter()
        .map(|bin| Path::new(bin).join("nats-server"));
    let go = env::home_dir().map(|home| home.join("go/bin/nats-server"));
    on_path("nats-server")
        .chain(usual)
        .chain(go)
        .filter_map(|program| NatsServer::at(&program))
        .max_by_key(|found| found.version)
}

/// Finds PgBouncer, else unpacks Debian's package without installing it, which would start a service.
///
/// # Errors
/// When there is none and none can be had; the error says what helps.
pub fn pgbouncer_server() -> Result<PgBouncerServer> {
    let usual = ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"].map(PathBuf::from);
    let usual = usual.iter().map(|bin| bin.join("pgbouncer"));
    if let Some(found) = on_path("pgbouncer").chain(usual).find_map(|program| PgBouncerServer::at(&program)) {
        return Ok(found);
    }
    let remedy = || format!("PgBouncer is missing: {}", install::command_for("pgbouncer"));
    let unpacked = install::by_package_file("pgbouncer").with_context(remedy)?;
    PgBouncerServer::at(&unpacked.join("usr/sbin/pgbouncer")).with_context(remedy)
}

fn on_path(program: &str) -> impl Iterator<Item = PathBuf> {
    which::which_all(program).into_iter().flatten()
}

/// The directories `<parent>/<prefix><number>/<inside>`, highest number first.
fn numbered(parent: &str, prefix: &str, inside: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let number =
                entry.file_name().to_str().and_then(|name| name.strip_prefix(prefix))?.parse::<u32>().ok()?;
            Some((number, entry.path().join(OsStr::new(inside))))
        })
        .collect();
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_say() {
        for (said, version) in [
            ("postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)", [15, 20, 0]),
            ("initdb (PostgreSQL) 18.6", [18, 6, 0]),
            ("postgres (PostgreSQL) 19beta1", [19, 0, 0]),
            ("nats-server: v2.9.10\n", [2, 9, 10]),
            ("PgBouncer 1.18.0\nlibevent 2.1.12-stable\n", [1, 18, 0]),
            ("nats-server: v2.15.1", [2, 15, 1]),
        ] {
            assert_eq!(version_in(said), Some(Version(version)), "{said}");
        }
        assert_eq!(version_in("no number"), None);
        assert!(Version([2, 9, 10]) < NATS_FLOOR && Version([2, 12, 6]) >= NATS_FLOOR);
    }
}
