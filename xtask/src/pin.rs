//! The tools that may be fetched, each pinned in `pins.toml` by version and digest.

use std::env::consts::{ARCH, OS};

use anyhow::{Context, Result};
use serde::Deserialize;

/// A pinned Python wheel that holds a tool's programs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    /// The tool, such as `nats-server`.
    pub name: String,
    /// The wheel's version.
    pub version: String,
    /// The wheel's name in the Python package index.
    pub wheel: String,
    /// Operating system and architecture, as Rust names them; `any` for what is no program.
    pub platform: String,
    /// SHA-256 of the wheel, in lower-case hexadecimal digits.
    pub sha256: String,
    /// The directory inside the wheel that holds the programs.
    pub inside: String,
    /// Where the digest can be seen again.
    pub checked: String,
}

/// A pinned file of a tool's own release.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The tool, and its program.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Operating system and architecture, as Rust names them.
    pub platform: String,
    /// Where the file is; the program itself, or a `.tar.gz` that holds it at its top.
    pub url: String,
    /// SHA-256 of the file, in lower-case hexadecimal digits.
    pub sha256: String,
    /// Where the digest can be seen again.
    pub checked: String,
}

/// A pinned crate whose program cargo builds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crate {
    /// The crate, and its program.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where the version can be seen again.
    pub checked: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pins {
    tool: Vec<Wheel>,
    release: Vec<Release>,
    #[serde(rename = "crate")]
    crates: Vec<Crate>,
}

fn pins() -> Result<Pins> {
    toml::from_str(include_str!("../pins.toml")).context("xtask/pins.toml is not of the form it should be")
}

/// The wheel that holds `tool` for this machine, if one is pinned.
///
/// # Errors
/// When `pins.toml` cannot be read.
pub fn wheel(tool: &str) -> Result<Option<Wheel>> {
    let platform = format!("{OS} {ARCH}");
    let fits = |pin: &Wheel| pin.platform == platform || pin.platform == "any";
    Ok(pins()?.tool.into_iter().find(|pin| pin.name == tool && fits(pin)))
}

/// The release of `tool` for this machine, if one is pinned.
///
/// # Errors
/// When `pins.toml` cannot be read.
pub fn release(tool: &str) -> Result<Option<Release>> {
    let platform = format!("{OS} {ARCH}");
    Ok(pins()?.release.into_iter().find(|pin| pin.name == tool && pin.platform == platform))
}

/// The pinned crate `name`.
///
/// # Errors
/// When `pins.toml` cannot be read or does not name it.
pub fn crate_named(name: &str) -> Result<Crate> {
    let pin = pins()?.crates.into_iter().find(|pin| pin.name == name);
    pin.with_context(|| format!("xtask/pins.toml names no crate {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_has_a_whole_digest_and_says_where_it_was_seen() {
        let pins = pins().unwrap();
        let wheels = pins.tool.iter().map(|pin| (&pin.name, &pin.sha256, &pin.checked));
        let releases = pins.release.iter().map(|pin| (&pin.name, &pin.sha256, &pin.checked));
        for (name, digest, checked) in wheels.chain(releases) {
            assert_eq!(digest.len(), 64, "{name}");
            assert!(digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{name}");
            assert!(!checked.is_empty(), "{name}");
        }
        assert!(pins.crates.iter().all(|pin| !pin.checked.is_empty()));
    }

    #[test]
    fn the_release_workflow_signs_with_the_pinned_cosign() {
        let workflow = include_str!("../../.github/workflows/release.yml");
        let pins = pins().unwrap();
        let cosign = pins.release.iter().find(|pin| pin.name == "cosign").unwrap();
        assert!(workflow.contains(&format!("COSIGN_URL: {}\n", cosign.url)));
        assert!(workflow.contains(&format!("COSIGN_SHA256: {} ", cosign.sha256)));
    }
}
