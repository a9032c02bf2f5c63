//! Manifests as they would be applied, rendered by kubectl.

use std::path::Path;
use std::process::Command;

use crate::verdict::Verdict;
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use xtask::tool::output;

use crate::description::text;

/// Whether kubectl is on this machine. Says so where it is not.
pub(crate) fn has_kubectl() -> bool {
    let found = which::which("kubectl").is_ok();
    if !found {
        println!("{}: kubectl is not on this machine, which renders the manifests", Verdict::NotRun);
    }
    found
}

pub(crate) fn render(kustomization: &Path) -> Result<String> {
    output(Command::new("kubectl").arg("kustomize").arg(kustomization))
}

pub(crate) fn parse(text: &str) -> Result<Vec<Value>> {
    let documents = serde_norway::Deserializer::from_str(text);
    let objects = documents.map(|document| Value::deserialize(document).context("a manifest is not YAML"));
    objects.filter(|object| !matches!(object, Ok(Value::Null))).collect()
}

/// An object's kind and name, without the hash that kustomize gives a ConfigMap.
pub(super) fn name(object: &Value) -> String {
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    let stem = name.rsplit_once('-').filter(|(_, hash)| kind == "ConfigMap" && hash.len() == 10);
    format!("{kind} {}", stem.map_or(name, |(stem, _)| stem))
}
