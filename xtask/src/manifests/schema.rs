//! The schema of Kubernetes itself, which refuses unknown fields.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use xtask::tool::fetched;

use super::render::{name, parse};
use crate::description::text;

/// The versions whose schemas are asked: the lowest that the manifests are for (infra/k8s/README.md) and the newest.
const KUBERNETES: [&str; 2] = ["1.33.0", "1.37.0"];
/// The group of the Prometheus operator, whose kinds are not Kubernetes' own.
const CUSTOM: &str = "monitoring.coreos.com/";

pub(super) type Schemas = BTreeMap<&'static str, Value>;

/// Reads them from the cache, where they are fetched at their digest.
pub(super) fn load() -> Result<Schemas> {
    let inside = fetched("kubernetes-validate")?;
    let load = |version| {
        let file = inside.join(format!("v{version}-local-strict/_definitions.json"));
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut whole: Value = serde_json::from_slice(&text).context("the schema is not JSON")?;
        Ok((version, whole.get_mut("$defs").context("the schema has no definitions")?.take()))
    };
    KUBERNETES.into_iter().map(load).collect()
}

pub(super) fn problems(schemas: &Schemas, rendered: &str) -> Result<Vec<String>> {
    let (objects, mut problems) = (parse(rendered)?, Vec::new());
    for ((version, definitions), object) in
        schemas.iter().flat_map(|schema| objects.iter().map(move |object| (schema, object)))
    {
        let (api, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
        // Such as `io.k8s.api.apps.v1.Deployment`.
        let (group, of_group) = api.split_once('/').unwrap_or(("core", api));
        let ending = format!(".{}.{of_group}.{kind}", group.split('.').next().unwrap_or(group));
        let mut names = definitions.as_object().into_iter().flat_map(|it| it.keys());
        let definition = names.find(|it| it.starts_with("io.k8s.api.") && it.ends_with(&ending));
        let mut say = |problem| problems.push(format!("Kubernetes {version}: {}: {problem}", name(object)));
        if let Some(definition) = definition {
            let schema = json!({"$ref": format!("#/$defs/{definition}"), "$defs": definitions});
            let validator = jsonschema::draft202012::new(&schema).map_err(|error| anyhow!("{error}"))?;
            let errors = validator.iter_errors(object);
            errors.for_each(|error| say(format!("{}: {error}", error.instance_path())));
        } else if !api.starts_with(CUSTOM) {
            say(format!("there is no {kind} in {api}"));
        }
    }
    Ok(problems)
}
