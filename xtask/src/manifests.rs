//! The Kubernetes manifests, rendered, against Kubernetes' schema, the admission policies and the rules of infra/expected.

mod policy;
mod render;
mod schema;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::verdict::Verdict;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use xtask::tool::WrongDigest;

use crate::description::{describe, list, text};
use crate::{cargo, observability};
use policy::Policies;
pub(crate) use render::{has_kubectl, parse, render};

const PRODUCTION: &str = "overlays/production";
const ADMISSION: &str = "../k8s/admission";
const TRY: &str = "infra/k8s/admission/try.sh";

/// A fault of production, from infra/expected/faults.yaml.
#[derive(Deserialize)]
struct Fault {
    /// The part of the rendered text that is replaced; without it, `with` is one more object.
    replace: Option<String>,
    with: String,
    /// How the problems begin that must be found.
    found: Vec<String>,
}

impl Fault {
    fn plant(&self, production: &str) -> Result<String> {
        let Some(right) = &self.replace else { return Ok(format!("{production}---\n{}", self.with)) };
        ensure!(production.contains(right), "{right} is no longer in the manifests");
        Ok(production.replace(right, &self.with))
    }
}

/// A file of infra/expected, or an overlay named from there.
fn expected(file: &str) -> PathBuf {
    cargo::root().join("infra/expected").join(file)
}

fn read<T: DeserializeOwned>(file: &str) -> Result<T> {
    serde_norway::from_str(&fs::read_to_string(expected(file))?).with_context(|| file.to_owned())
}

/// The admission policies, and those of infra/expected/rules.yaml.
fn policies(worker: &Path) -> Result<Policies> {
    let mut policies = parse(&render(&expected(ADMISSION))?)?;
    let registry = policies.iter().find(|object| text(object, "/kind") == "ConfigMap");
    let registry = registry.and_then(Value::as_object).context("the admission policies have no ConfigMap")?;
    let mut params = registry.clone();
    let described = describe(worker)?;
    let keys = list(&described, "/keys").iter();
    let keys = keys.map(|key| (text(key, "/variable").to_owned(), key["default"].clone()));
    params.insert("defaults".to_owned(), keys.collect());
    params.insert("dockerfile".to_owned(), cargo::read("infra/docker/Dockerfile")?.into());
    params.insert("alerts".to_owned(), observability::alerts()?.into());
    params.insert("alert_tests".to_owned(), read("../observability/rules_test.yaml")?);
    policies.extend(parse(&cargo::read("infra/expected/rules.yaml")?)?);
    Policies::read(&policies, params)
}

/// What is wrong with a rendered overlay, beyond what the schema says.
fn problems(policies: &Policies, overlay: &str, rendered: &str) -> Result<Vec<String>> {
    let mut objects = parse(rendered)?;
    objects.push(json!({"kind": "Overlay", "metadata": {"name": overlay}}));
    let mut problems = policies.refusals(&objects);
    if overlay.starts_with("overlays/") {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(&file, rendered)?;
        let mut diff = Command::new("diff");
        diff.arg("--unified=0").arg(expected("production.yaml")).arg(file.path());
        let output = diff.output().context("cannot run diff")?;
        ensure!(output.status.code().is_some_and(|code| code < 2), "diff cannot compare production.yaml");
        let differences = String::from_utf8(output.stdout)?;
        let lines = differences.lines().skip(2).filter(|line| !line.starts_with("@@"));
        problems.extend(lines.map(|line| format!("production.yaml: {line}")));
    }
    Ok(problems)
}

/// Renders every overlay of infra/expected/overlays.yaml and prints what is wrong with it.
pub(crate) async fn check() -> Result<Verdict> {
    if !has_kubectl() {
        return Ok(Verdict::NotRun);
    }
    let schemas = match schema::load() {
        // A file that is not the pinned one is worse than none.
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        loaded => loaded,
    };
    let policies = policies(&cargo::build_worker().await?)?;
    let mut passed = true;
    for (overlay, wanted) in read::<BTreeMap<String, Vec<String>>>("overlays.yaml")? {
        let rendered = render(&expected(&overlay))?;
        let mut found = problems(&policies, &overlay, &rendered)?;
        if let Ok(schemas) = &schemas {
            found.extend(schema::problems(schemas, &rendered)?);
        }
        println!("{overlay}: {}", if found == wanted { "as expected" } else { "NOT AS EXPECTED" });
        found.iter().filter(|problem| !wanted.contains(problem)).for_each(|it| println!("  {it}"));
        wanted.iter().filter(|it| !found.contains(it)).for_each(|it| println!("  no longer so: {it}"));
        passed &= found == wanted;
    }
    match schemas {
        _ if !passed => Ok(Verdict::Failed),
        Ok(_) => Ok(Verdict::Passed),
        Err(error) => {
            println!("NOT RUN: the schema of Kubernetes cannot be fetched: {error:#}");
            Ok(Verdict::NotRun)
        }
    }
}

/// Tries every planted fault that the admission policies must refuse, and production itself, on the cluster.
pub(crate) async fn on_cluster() -> Result<Verdict> {
    let production = render(&expected(PRODUCTION))?;
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("production.yaml"), &production)?;
    for (fault, number) in read::<Vec<Fault>>("faults.yaml")?.iter().zip(100..) {
        let refusals = fault.found.iter().filter(|problem| problem.starts_with("muster-"));
        let messages = refusals.filter_map(|it| Some(it.rsplit_once(": ")?.1.to_owned() + "\n"));
        let messages = messages.collect::<String>();
        if !messages.is_empty() {
            fs::write(directory.path().join(format!("{number}.yaml")), fault.plant(&production)?)?;
            fs::write(directory.path().join(format!("{number}.refusals")), messages)?;
        }
    }
    let mut script = cargo::command("bash", &[TRY]);
    cargo::passes(script.arg(directory.path())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_planted_fault_is_found() {
        if !has_kubectl() {
            assert_eq!(Verdict::NotRun.enforced(), Verdict::NotRun);
            return;
        }
        let policies = policies(&cargo::build_worker().await.unwrap()).unwrap();
        let production = render(&expected(PRODUCTION)).unwrap();
        let mut missed = Vec::new();
        for fault in read::<Vec<Fault>>("faults.yaml").unwrap() {
            let planted = fault.plant(&production).unwrap();
            let mut problems = problems(&policies, PRODUCTION, &planted).unwrap();
            if fault.found.iter().any(|problem| problem.starts_with("Kubernetes")) {
                problems.extend(schema::problems(&schema::load().unwrap(), &planted).unwrap());
            }
            let is_found = |wanted: &String| problems.iter().any(|problem| problem.starts_with(wanted));
            missed.extend(fault.found.into_iter().filter(|wanted| !is_found(wanted)));
        }
        assert_eq!(missed, [""; 0]);
    }
}
