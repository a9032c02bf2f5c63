//! Manifests as they would be applied, rendered by kubectl.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use xtask::Verdict;

use crate::description::text;

/// Whether kubectl is on this machine. Says so where it is not.
pub(crate) fn has_kubectl() -> bool {
    let found = which::which("kubectl").is_ok();
    if !found {
        println!("{}: kubectl is not on this machine, which renders the manifests", Verdict::NotRun);
    }
    found
}

/// A kustomization as it would be applied.
pub(crate) fn render(kustomization: &Path) -> Result<String> {
    let mut command = Command::new("kubectl");
    command.arg("kustomize").arg(kustomization).stdin(Stdio::null());
    let output = command.output().context("cannot run kubectl")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} does not render: {}", kustomization.display(), stderr.trim());
    String::from_utf8(output.stdout).context("kubectl's output is not text")
}

/// The objects of a rendered text.
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
