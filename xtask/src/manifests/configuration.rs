//! What the worker's sources say of its configuration, for the manifests to agree with.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What the manifests must agree with.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// Every variable that the worker knows.
    pub(super) variables: BTreeSet<String>,
    /// The port of `http.address`.
    pub(super) http_port: u64,
    /// `startup.wait_ms`, in whole seconds.
    pub(super) start_seconds: u64,
    /// `shutdown.deadline_ms`, in whole seconds.
    pub(super) drain_seconds: u64,
    /// The user of the image, from its Dockerfile.
    pub(super) user: u64,
    /// The port that the image says it listens on.
    pub(super) exposed_port: u64,
    /// The source that names every metric.
    pub(super) metrics: String,
}

impl Facts {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let read =
            |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"));
        let defaults: toml::Table =
            toml::from_str(&read("crates/worker/src/defaults.toml")?).context("the defaults are no TOML")?;
        let default = |section: &str, key: &str| {
            let value = defaults.get(section).and_then(|section| section.get(key));
            value.with_context(|| format!("the defaults have no {section}.{key}"))
        };
        let seconds = |section: &str, key: &str| -> Result<u64> {
            let millis = default(section, key)?.as_integer().and_then(|millis| u64::try_from(millis).ok());
            millis
                .map(|millis| millis.div_ceil(1000))
                .with_context(|| format!("{section}.{key} is no duration"))
        };
        let address = default("http", "address")?.as_str().context("http.address is no text")?;
        let (_, port) = address.rsplit_once(':').context("http.address has no port")?;
        let dockerfile = read("infra/docker/Dockerfile")?;
        let instruction = |name: &str| -> Result<u64> {
            let argument = dockerfile.lines().rev().find_map(|line| line.strip_prefix(name));
            let first = argument.and_then(|argument| argument.trim().split([':', '/']).next());
            first
                .and_then(|number| number.parse().ok())
                .with_context(|| format!("the Dockerfile has no {name}with a number"))
        };
        Ok(Self {
            variables: variables(&read("crates/worker/src/settings.rs")?)?,
            http_port: port.parse().context("http.address has no port")?,
            start_seconds: seconds("startup", "wait_ms")?,
            drain_seconds: seconds("shutdown", "deadline_ms")?,
            user: instruction("USER ")?,
            exposed_port: instruction("EXPOSE ")?,
            metrics: read("crates/worker/src/metrics.rs")?,
        })
    }
}

/// Reads the variables off the structures that the configuration is read into, which refuse unknown fields: so a key that
/// stands here is one that the worker takes, and the other way round.
fn variables(settings: &str) -> Result<BTreeSet<String>> {
    let fields = |name: &str| -> Vec<(String, String)> {
        let (_, body) = settings.split_once(&format!("struct {name} {{\n")).unwrap_or_default();
        let (body, _) = body.split_once("\n}").unwrap_or_default();
        let lines = body.lines().map(str::trim).filter(|line| !line.starts_with(['#', '/']));
        let parted = lines.filter_map(|line| line.trim_end_matches(',').split_once(": "));
        parted.map(|(field, kind)| (field.to_owned(), kind.to_owned())).collect()
    };
    let mut variables = BTreeSet::new();
    for (section, kind) in fields("Raw") {
        if !kind.starts_with("Raw") {
            variables.insert(format!("MUSTER__{}", section.to_uppercase()));
            continue;
        }
        let keys = fields(&kind);
        ensure!(!keys.is_empty(), "the worker's settings have no structure {kind}");
        variables.extend(
            keys.iter().map(|(key, _)| format!("MUSTER__{}__{}", section.to_uppercase(), key.to_uppercase())),
        );
    }
    ensure!(!variables.is_empty(), "the worker's settings have no structure Raw");
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_known_variable() {
        let root = crate::cargo::root();
        let facts = Facts::read(&root).unwrap();
        let defaults = fs::read_to_string(root.join("crates/worker/src/defaults.toml")).unwrap();
        let defaults: toml::Table = toml::from_str(&defaults).unwrap();
        for (section, value) in &defaults {
            let keys: Vec<String> = match value.as_table() {
                Some(keys) => keys.keys().map(|key| format!("{section}__{key}")).collect(),
                None => vec![section.clone()],
            };
            for key in keys {
                let variable = format!("MUSTER__{}", key.to_uppercase());
                assert!(facts.variables.contains(&variable), "{variable}");
            }
        }
        assert!(facts.variables.contains("MUSTER__NATS__CREDENTIALS_FILE"));
        assert!(!facts.variables.contains("MUSTER__NATS__URSL"));
        assert_eq!((facts.user, facts.exposed_port), (65532, 8080));
    }
}
