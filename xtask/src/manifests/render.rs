//! Manifests as they would be applied, rendered by kubectl.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// The program that renders, if it is there.
pub(crate) fn kubectl() -> Option<PathBuf> {
    which::which("kubectl").ok()
}

/// The same for a test, which says where it cannot run, and fails where continuous integration decides.
#[cfg(test)]
pub(crate) fn kubectl_of_this_test() -> Option<PathBuf> {
    let kubectl = kubectl();
    if kubectl.is_none() {
        println!("NOT RUN: no kubectl");
        assert!(std::env::var_os("GITHUB_ACTIONS").is_none(), "no kubectl");
    }
    kubectl
}

/// A kustomization as it would be applied.
pub(crate) fn text(kubectl: &Path, kustomization: &Path) -> Result<String> {
    let mut command = Command::new(kubectl);
    command.arg("kustomize").arg(kustomization).stdin(Stdio::null());
    let output = command.output().context("cannot run kubectl")?;
    ensure!(
        output.status.success(),
        "{} does not render: {}",
        kustomization.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
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
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    let stem = name.rsplit_once('-').filter(|(_, hash)| kind == "ConfigMap" && hash.len() == 10);
    format!("{kind} {}", stem.map_or(name, |(stem, _)| stem))
}

/// The elements at a JSON pointer; none where there is no list.
pub(crate) fn list_at<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}
