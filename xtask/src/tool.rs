//! Where a pinned tool comes from: this machine, the cache, its release, or a wheel that holds it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::pin::{self, Release, Wheel};
use crate::services::{self, by_wheel, cache};

/// A program in its pinned version.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The program.
    pub program: PathBuf,
    /// Its version.
    pub version: String,
    /// Where it comes from, in words.
    pub origin: &'static str,
}

/// Finds a tool in its pinned version on PATH or in the cache, else fetches it, unless `offline`: its release, or where
/// that cannot be fetched the wheel.
///
/// # Errors
/// When it cannot be had; the message says why. A file of another digest than the pinned one is not used.
pub fn find(name: &str, offline: bool) -> Result<Tool> {
    let (release, wheel) = (pin::release(name)?, pin::wheel(name)?);
    let versions =
        [release.as_ref().map(|pin| pin.version.as_str()), wheel.as_ref().map(|pin| pin.version.as_str())];
    if let Ok(program) = which::which(name)
        && let Some(version) = versions.into_iter().flatten().find(|version| has_version(&program, version))
    {
        return Ok(Tool { version: version.to_owned(), program, origin: "PATH" });
    }
    let mut refused = Vec::new();
    if let Some(pin) = &release {
        match by_release(pin, offline) {
            Ok(program) => return Ok(Tool { program, version: pin.version.clone(), origin: "release" }),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    if let Some(pin) = &wheel {
        let program = kept(pin)?.join(name);
        if program.is_file() || !offline {
            match by_wheel(name) {
                Ok(_) => return Ok(Tool { program, version: pin.version.clone(), origin: "wheel" }),
                Err(error) => refused.push(format!("{error:#}")),
            }
        }
    }
    if refused.is_empty() {
        bail!("{name} is pinned for no machine such as this, and not on PATH");
    }
    bail!("{name} cannot be had: {}", refused.join("; "))
}

fn has_version(program: &Path, version: &str) -> bool {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace().any(|word| word.trim_start_matches('v') == version)
    })
}

fn kept(pin: &Wheel) -> Result<PathBuf> {
    let digest: String = pin.sha256.chars().take(12).collect();
    Ok(cache()?.join(format!("{}-{}-{digest}", pin.name, pin.version)).join(&pin.inside))
}

fn by_release(pin: &Release, offline: bool) -> Result<PathBuf> {
    let digest: String = pin.sha256.chars().take(12).collect();
    let kept = cache()?.join(format!("{}-{}-{digest}", pin.name, pin.version));
    let program = kept.join(&pin.name);
    if program.is_file() {
        return Ok(program);
    }
    if offline {
        bail!("it is neither on PATH nor in the cache, and nothing is fetched offline");
    }
    let cache = cache()?;
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let scratch = tempfile::Builder::new().prefix("fetch-").tempdir_in(&cache)?;
    let file = scratch.path().join("file");
    services::run(
        Command::new("curl")
            .args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https"])
            .args(["--connect-timeout", "10", "--max-time", "300", "--output"])
            .arg(&file)
            .arg(&pin.url),
    )?;
    services::verify(&file, &pin.sha256)?;
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked)?;
    if pin.url.ends_with(".tar.gz") {
        let mut tar = Command::new("tar");
        services::run(tar.arg("-xzf").arg(&file).arg("-C").arg(&unpacked).arg(&pin.name))?;
    } else {
        fs::rename(&file, unpacked.join(&pin.name))?;
    }
    fs::set_permissions(unpacked.join(&pin.name), fs::Permissions::from_mode(0o755))?;
    // Somebody else may have been faster, with the same content.
    if fs::rename(&unpacked, &kept).is_err() && !program.is_file() {
        bail!("cannot make {}", kept.display());
    }
    Ok(program)
}
