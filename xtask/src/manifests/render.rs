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

/// Production with the optional components.
#[cfg(test)]
pub(super) fn with_components(kubectl: &Path, root: &Path, components: &[&str]) -> Result<Vec<Value>> {
    // Kustomize takes relative paths only.
    let target = root.join("target");
    std::fs::create_dir_all(&target)?;
    let directory = tempfile::Builder::new().prefix("components-").tempdir_in(target)?;
    let components: Vec<String> =
        components.iter().map(|name| format!("../../infra/k8s/components/{name}")).collect();
    let kustomization = serde_json::json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../infra/k8s/overlays/production"],
        "components": components,
    });
    std::fs::write(directory.path().join("kustomization.yaml"), kustomization.to_string())?;
    objects(kubectl, directory.path())
}

/// Its objects.
pub(crate) fn objects(kubectl: &Path, kustomization: &Path) -> Result<Vec<Value>> {
    parse(&text(kubectl, kustomization)?)
}

pub(crate) fn parse(text: &str) -> Result<Vec<Value>> {
    let documents = serde_norway::Deserializer::from_str(text);
    let objects = documents.map(|document| Value::deserialize(document).context("a manifest is no YAML"));
    objects.filter(|object| !matches!(object, Ok(Value::Null))).collect()
}
