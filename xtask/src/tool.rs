//! Gets a program or a server: from this machine in a version that is wanted, else from a pinned wheel or a Debian package.

use std::collections::BTreeMap;
use std::env;
use std::env::consts::{ARCH, OS};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use muster_domain::Version;
use nix::unistd::Uid;
use serde::Deserialize;

const FETCH: &str = include_str!("tool/fetch.sh");
/// What pip says of a wheel that has another digest.
const MISMATCH: &str = "DO NOT MATCH THE HASHES";
/// Where packages and their makers put programs that may not be on PATH.
const USUAL: [&str; 4] = ["/usr/local/bin", "/usr/sbin", "/usr/bin", "/opt/homebrew/bin"];

const POSTGRES_FLOOR: Version = muster_storage::SERVER_FLOOR.least;
/// The oldest nats-server without a known advisory that concerns Muster.
const NATS_FLOOR: Version = muster_messaging::connection::SERVER_FLOOR.advised;
/// Where packages put the directories of PostgreSQL's versions.
const PARENTS: [&str; 5] =
    ["/usr/lib/postgresql", "/usr", "/usr/local", "/opt/homebrew/opt", "/usr/local/opt"];

/// A fetched file is not the one that is pinned. Nothing else is used in its place: somebody has to look at it.
#[derive(Debug, thiserror::Error)]
#[error("the wheel of {0} is not the pinned one and not used; the pin's digest is from {1}")]
pub struct WrongDigest(String, String);

/// A tool of `pins.toml`, which says what the fields mean.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    name: String,
    version: String,
    from: String,
    package: String,
    platform: String,
    #[serde(default)]
    sha256: String,
    inside: String,
    checked: String,
}

fn pins() -> Result<Vec<Pin>> {
    let pins = toml::from_str::<BTreeMap<String, Vec<Pin>>>(include_str!("../pins.toml"));
    pins.context("cannot read xtask/pins.toml")?.remove("tool").context("xtask/pins.toml pins nothing")
}

fn pin_of(tool: &str) -> Result<Pin> {
    let platform = format!("{OS} {ARCH}");
    let fits = |pin: &Pin| pin.platform == platform || pin.platform == "any";
    let pin = pins()?.into_iter().find(|pin| pin.name == tool && fits(pin));
    pin.with_context(|| format!("no {tool} is pinned for this machine"))
}

/// Where fetched tools are kept: `$XDG_CACHE_HOME/muster`, else `~/.cache/muster`; for root `/var/cache/muster`, since
/// PostgreSQL runs as a user who cannot look into root's home.
pub fn cache() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(cache) => cache,
        None if Uid::effective().is_root() => PathBuf::from("/var/cache"),
        None => env::home_dir().context("no home directory: set XDG_CACHE_HOME")?.join(".cache"),
    };
    Ok(cache.join("muster"))
}

/// Finds a tool in its pinned version on PATH, else fetches it. Answers its version and origin, too.
pub fn find(name: &str) -> Result<(PathBuf, String)> {
    let pin = pin_of(name)?;
    let is_pinned = |program: &PathBuf| {
        let printed = output(Command::new(program).arg("--version")).unwrap_or_default();
        printed.split_whitespace().any(|word| word.trim_start_matches('v') == pin.version)
    };
    if let Some(program) = which::which(name).ok().filter(is_pinned) {
        return Ok((program, format!("{} (PATH)", pin.version)));
    }
    Ok((fetched(name)?.join(name), format!("{} ({} {})", pin.version, pin.from, pin.package)))
}

/// Fetches a pinned tool into the cache, unless it is there; answers the directory of its programs.
pub fn fetched(tool: &str) -> Result<PathBuf> {
    let pin = pin_of(tool)?;
    fetch(&pin, &format!("{}=={}", pin.package, pin.version), &cache()?)
}

/// Has pip or cargo fetch `package`; pip takes a wheel only if its digest is the pinned one.
fn fetch(pin: &Pin, package: &str, cache: &Path) -> Result<PathBuf> {
    let digest: String = pin.sha256.chars().take(12).collect();
    let name = format!("{}-{}-{}-{digest}", pin.from, pin.name, pin.version);
    match unpacked(&pin.from, &[package, &pin.sha256], &cache.join(name.trim_end_matches('-'))) {
        Err(error) if error.to_string().contains(MISMATCH) => {
            Err(error.context(WrongDigest(pin.name.clone(), pin.checked.clone())))
        }
        unpacked => Ok(unpacked?.join(&pin.inside)),
    }
}

/// A program of this machine, else one out of Debian's package, which is not installed: it would start a service.
pub fn packaged(package: &str, program: &str) -> Result<PathBuf> {
    if let Some(found) = on_path(program).next() {
        return Ok(found);
    }
    let place = cache()?.join(format!("debian-{package}"));
    let unpacked = unpacked("debian", &[package], &place).with_context(|| {
        format!("{program} is missing: install it (on Debian and Ubuntu `sudo apt-get install {package}`), then run this again")
    })?;
    let mut programs = ["usr/bin", "usr/sbin"].map(|bin| unpacked.join(bin).join(program)).into_iter();
    programs.find(|path| path.is_file()).with_context(|| format!("Debian's {package} has no {program}"))
}

/// Unpacks a package to `place` in the cache, unless it is there.
fn unpacked(kind: &str, package: &[&str], place: &Path) -> Result<PathBuf> {
    if !place.is_dir() {
        println!("fetching {} ({kind}) into {}", package.first().unwrap_or(&""), place.display());
        let cache = place.parent().context("no cache")?;
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let scratch = tempfile::Builder::new().prefix("fetch-").tempdir_in(cache)?;
        let mut fetch = Command::new("sh");
        output(fetch.args(["-c", FETCH, "fetch", kind]).args(package).current_dir(scratch.path()))?;
        let renamed = fs::rename(scratch.path().join("unpacked"), place);
        // Another process may have been faster, with the same content.
        ensure!(renamed.is_ok() || place.is_dir(), "cannot make {}: {renamed:?}", place.display());
    }
    Ok(place.to_owned())
}

/// The programs of this name, those on PATH first.
fn on_path(program: &str) -> impl Iterator<Item = PathBuf> {
    let usual = USUAL.map(|bin| Path::new(bin).join(program)).into_iter().filter(|path| path.is_file());
    which::which_all(program).into_iter().flatten().chain(usual)
}

/// Runs a command to its end, which must be a success; answers what it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A server's program.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its path.
    pub program: PathBuf,
    /// Its version.
    pub version: Version,
}

impl Server {
    /// The version is the first dotted number of what it says, such as `postgres (PostgreSQL) 15.20 (Debian …)`.
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
        let directories = PARENTS.iter().flat_map(fs::read_dir).flatten().flatten();
        let versions = || directories.filter_map(|entry| Self::postgres(&entry.path().join("bin")));
        let on_path = on_path("initdb").find_map(|initdb| Self::postgres(initdb.parent()?));
        on_path.or_else(|| versions().max_by_key(|found| found.version))
    }

    /// Whether a PostgreSQL has this library beside it, to load at its start. Packages differ in where they put libraries.
    pub(crate) fn has_library(&self, name: &str) -> bool {
        let places = ["../lib", "../lib/postgresql", "../lib64/pgsql", "../lib/pgsql"];
        let files = ["so", "dylib"].map(|ending| format!("{name}.{ending}"));
        places.iter().any(|place| files.iter().any(|file| self.bin().join(place).join(file).is_file()))
    }

    /// The directory of its programs.
    pub fn bin(&self) -> &Path {
        self.program.parent().unwrap_or(Path::new("."))
    }
}

/// Finds PostgreSQL 15 or later: `MUSTER_POSTGRES_BIN` names its directory, else it is on this machine, else it is fetched.
pub fn postgres_server() -> Result<Server> {
    if let Some(bin) = env::var_os("MUSTER_POSTGRES_BIN") {
        let found = Server::postgres(Path::new(&bin));
        return found
            .with_context(|| format!("MUSTER_POSTGRES_BIN: no PostgreSQL {POSTGRES_FLOOR} or later"));
    }
    if let Some(found) = Server::installed_postgres() {
        return Ok(found);
    }
    let install = || output(Command::new("sh").args(["-c", FETCH, "fetch", "install", "postgresql"]));
    let found = match fetched("postgresql") {
        Ok(bin) => Ok(Server::postgres(&bin)),
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        Err(error) => install().map_err(|_| error).map(|_| Server::installed_postgres()),
    };
    found.and_then(|found| found.context("what was fetched does not run here")).context(
        "PostgreSQL is missing: install it (on Debian and Ubuntu `sudo apt-get install postgresql`), then run this again",
    )
}

/// Finds nats-server: the one that `MUSTER_NATS_SERVER` names, else this machine's newest without an advisory, else fetches.
pub fn nats_server() -> Result<Server> {
    if let Some(program) = env::var_os("MUSTER_NATS_SERVER") {
        return Server::at(program.into()).context("MUSTER_NATS_SERVER names no nats-server that runs");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_has_a_whole_digest_and_says_where_it_was_seen() {
        for Pin { name, from, sha256, checked, .. } in pins().unwrap() {
            let is_whole =
                sha256.len() == 64 && sha256.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
            // Cargo has a crate's digest from the index.
            assert!(is_whole || (from == "crate" && sha256.is_empty()), "{name}");
            assert!(!checked.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_wheel_of_another_digest_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        let wheel = cache.path().join("planted-1.0-py3-none-any.whl");
        let make = include_str!("tool/make_wheel.py");
        let digest = output(Command::new("python3").args(["-c", make]).arg(&wheel)).unwrap();
        let mut pin = pin_of("kubernetes-validate").unwrap();
        pin.inside = "bin".to_owned();
        let package = wheel.to_str().unwrap();
        let error = fetch(&pin, package, cache.path()).unwrap_err();
        assert!(error.is::<WrongDigest>() && format!("{error:#}").contains(digest.trim()), "{error:#}");
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1, "only the wheel is there");
        pin.sha256 = digest.trim().to_owned();
        assert_eq!(fs::read(fetch(&pin, package, cache.path()).unwrap().join("planted")).unwrap(), b"abc");
        // What is merely not there is another error.
        pin.version = "another".to_owned();
        assert!(!fetch(&pin, "/nowhere.whl", cache.path()).unwrap_err().is::<WrongDigest>());
    }
}
