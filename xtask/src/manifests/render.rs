use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// Every kustomization that is applied to a cluster.
pub(crate) const OVERLAYS: [&str; 4] =
    ["overlays/production", "overlays/development", "monitoring", "admission"];

/// The program that renders, if it is there.
pub(crate) fn kubectl() -> Option<PathBuf> {
    which::which("kubectl").ok()
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
    String::from_utf8(output.stdout).context("kubectl answers what is no text")
}

/// Its objects.
pub(super) fn objects(kubectl: &Path, kustomization: &Path) -> Result<Vec<Value>> {
    parse(&text(kubectl, kustomization)?)
}

pub(crate) fn parse(text: &str) -> Result<Vec<Value>> {
    let documents = serde_norway::Deserializer::from_str(text);
    let objects = documents.map(|document| Value::deserialize(document).context("a manifest is no YAML"));
    objects.filter(|object| !matches!(object, Ok(Value::Null))).collect()
}
