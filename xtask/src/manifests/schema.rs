//! The schema of Kubernetes itself, which refuses unknown fields.

use std::fs;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use xtask::services;

use super::render::{name, parse};
use crate::description::text;

/// The versions whose schemas are asked: the lowest that the manifests are for (infra/k8s/README.md) and the newest.
const KUBERNETES: [&str; 2] = ["1.33.0", "1.37.0"];
/// The group of the Prometheus operator, whose kinds are not Kubernetes' own.
const CUSTOM: &str = "monitoring.coreos.com/";

/// The schema of one version.
pub(super) struct Schema {
    version: &'static str,
    definitions: Value,
}

impl Schema {
    /// That of the lowest version and that of the newest, from the cache, else fetched at their digest.
    pub(super) fn load_all() -> Result<Vec<Self>> {
        let inside = services::by_wheel("kubernetes-validate")?.context("no wheel is pinned")?;
        let load = |version| {
            let file = inside.join(format!("v{version}-local-strict/_definitions.json"));
            let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let mut whole: Value = serde_json::from_slice(&text).context("the schema is not JSON")?;
            let definitions = whole.get_mut("$defs").context("the schema has no definitions")?.take();
            Ok(Self { version, definitions })
        };
        KUBERNETES.into_iter().map(load).collect()
    }

    /// What this version of Kubernetes would refuse.
    pub(super) fn problems(&self, rendered: &str) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for object in parse(rendered)? {
            let (api, kind) = (text(&object, "/apiVersion"), text(&object, "/kind"));
            // Such as `io.k8s.api.apps.v1.Deployment`.
            let (group, version) = api.split_once('/').unwrap_or(("core", api));
            let ending = format!(".{}.{version}.{kind}", group.split('.').next().unwrap_or(group));
            let mut names = self.definitions.as_object().into_iter().flat_map(|it| it.keys());
            let definition = names.find(|it| it.starts_with("io.k8s.api.") && it.ends_with(&ending));
            let mut say =
                |problem| problems.push(format!("Kubernetes {}: {}: {problem}", self.version, name(&object)));
            let Some(definition) = definition else {
                if !api.starts_with(CUSTOM) {
                    say(format!("there is no {kind} in {api}"));
                }
                continue;
            };
            let schema = json!({"$ref": format!("#/$defs/{definition}"), "$defs": self.definitions});
            let validator = jsonschema::draft202012::new(&schema).map_err(|error| anyhow!("{error}"))?;
            let errors = validator.iter_errors(&object);
            errors.for_each(|error| say(format!("{}: {error}", error.instance_path())));
        }
        Ok(problems)
    }
}
