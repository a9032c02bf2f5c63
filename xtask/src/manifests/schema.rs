//! The schema of Kubernetes itself, which refuses unknown fields.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use xtask::services;

use super::Verdict;

/// The versions whose schemas are asked: the lowest that the manifests are for (infra/k8s/README.md) and the newest.
const KUBERNETES: [&str; 2] = ["1.33.0", "1.37.0"];
/// Groups of custom resources, whose schema is not Kubernetes' own.
const CUSTOM: [&str; 1] = ["monitoring.coreos.com/"];

/// The schema of one version.
pub(super) struct Schema {
    version: &'static str,
    definitions: Value,
}

impl Schema {
    /// That of the lowest version and that of the newest, from the cache, else fetched at their digest.
    pub(super) fn load_all() -> Result<Vec<Self>> {
        let inside: PathBuf = services::by_wheel("kubernetes-validate")?.context("no wheel is pinned")?;
        KUBERNETES.iter().map(|version| Self::load(&inside, version)).collect()
    }

    fn load(inside: &Path, version: &'static str) -> Result<Self> {
        let file = inside.join(format!("v{version}-local-strict/_definitions.json"));
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut whole: Value = serde_json::from_slice(&text).context("the schema is no JSON")?;
        let definitions = whole.get_mut("$defs").context("the schema has no definitions")?.take();
        Ok(Self { version, definitions })
    }

    pub(super) fn check(&self, objects: &[Value]) -> Result<Vec<Verdict>> {
        objects.iter().map(|object| self.verdict(object)).collect()
    }

    fn verdict(&self, object: &Value) -> Result<Verdict> {
        let problem = self.problem(object)?;
        Ok(Verdict { rule: "the schema of Kubernetes", object: super::rules::name(object), problem })
    }

    fn problem(&self, object: &Value) -> Result<Option<String>> {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if CUSTOM.iter().any(|group| version.starts_with(group)) {
            return Ok(None);
        }
        let Some(definition) = self.definition(version, kind) else {
            return Ok(Some(format!("Kubernetes {} knows no {kind} in {version}", self.version)));
        };
        let schema = json!({"$ref": format!("#/$defs/{definition}"), "$defs": self.definitions});
        let validator = jsonschema::draft202012::new(&schema)
            .map_err(|error| anyhow!("the schema cannot be used: {error}"))?;
        let problems: Vec<String> = validator
            .iter_errors(object)
            .map(|error| format!("{}: {error} (Kubernetes {})", error.instance_path(), self.version))
            .collect();
        Ok((!problems.is_empty()).then(|| problems.join("; ")))
    }

    /// The name of the definition of a kind, such as `io.k8s.api.apps.v1.Deployment`.
    fn definition(&self, version: &str, kind: &str) -> Option<&str> {
        let (group, version) = version.split_once('/').unwrap_or(("core", version));
        let group = group.split('.').next()?;
        let ending = format!(".{group}.{version}.{kind}");
        let names = self.definitions.as_object()?.keys();
        names.map(String::as_str).find(|name| name.starts_with("io.k8s.api.") && name.ends_with(&ending))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_and_a_kind_that_is_gone_are_refused() {
        let schemas = match Schema::load_all() {
            Ok(schemas) => schemas,
            Err(error) => {
                println!("NOT RUN: {error:#}");
                assert!(std::env::var_os("GITHUB_ACTIONS").is_none(), "{error:#}");
                return;
            }
        };
        assert_eq!(schemas.len(), KUBERNETES.len());
        for schema in schemas {
            let account = |field: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, field: false});
            assert_eq!(schema.problem(&account("automountServiceAccountToken")).unwrap(), None);
            assert!(schema.problem(&account("automountToken")).unwrap().unwrap().contains("automountToken"));
            let policy = json!({"apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicy"});
            assert!(schema.problem(&policy).unwrap().unwrap().contains("knows no PodSecurityPolicy"));
        }
    }
}
