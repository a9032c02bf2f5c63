mod policy;
pub(crate) mod render;
mod schema;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use xtask::Verdict;
use xtask::services::WrongDigest;

use crate::cargo;
use crate::description::{Description, text};
use policy::Policies;
use schema::Schema;

const PRODUCTION: &str = "overlays/production";
const ADMISSION: &str = "../k8s/admission";
/// How long a policy may take to have effect once it is applied.
const EFFECT: Duration = Duration::from_secs(60);

/// What `cargo xtask manifests` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Print production as it renders, in the form of infra/expected/production.yaml.
    #[arg(long)]
    print: bool,
    /// On the cluster that kubectl speaks to, apply the admission policies and try planted faults and production on it.
    #[arg(long)]
    cluster: bool,
}

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
fn policies(kubectl: &Path, worker: &Path) -> Result<Policies> {
    let mut policies = render::parse(&render::text(kubectl, &expected(ADMISSION))?)?;
    let registry = policies.iter().find(|object| text(object, "/kind") == "ConfigMap");
    let registry = registry.and_then(Value::as_object).context("the admission policies have no ConfigMap")?;
    let mut params = registry.clone();
    let described = Description::of(worker)?;
    let keys =
        described.entries("keys").map(|key| (text(key, "/variable").to_owned(), key["default"].clone()));
    params.insert("defaults".to_owned(), Map::from_iter(keys).into());
    params.insert("dockerfile".to_owned(), fs::read_to_string(expected("../docker/Dockerfile"))?.into());
    policies.extend(render::parse(&fs::read_to_string(expected("rules.yaml"))?)?);
    Policies::read(&policies, params)
}

/// What is wrong with a rendered overlay, beyond what the schema says.
fn problems(policies: &Policies, overlay: &str, rendered: &str) -> Result<Vec<String>> {
    let mut objects = render::parse(rendered)?;
    objects.push(json!({"kind": "Overlay", "metadata": {"name": overlay}}));
    let mut problems = policies.refusals(&objects);
    if overlay.starts_with("overlays/") {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(&file, rendered)?;
        let mut diff = Command::new("diff");
        diff.arg("--unified=0").arg(expected("production.yaml")).arg(file.path());
        let differences = String::from_utf8(diff.output().context("cannot run diff")?.stdout)?;
        let lines = differences.lines().skip(2).filter(|line| !line.starts_with("@@"));
        problems.extend(lines.map(|line| format!("production.yaml: {line}")));
    }
    Ok(problems)
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let kubectl = || render::kubectl().context("kubectl is not on this machine");
    if arguments.print {
        print!("{}", render::text(&kubectl()?, &expected(PRODUCTION))?);
        return Ok(ExitCode::SUCCESS);
    }
    Ok(if arguments.cluster { on_cluster(&kubectl()?)? } else { check().await? }.into())
}

/// Renders every overlay of infra/expected/overlays.yaml and prints what is wrong with it.
pub(crate) async fn check() -> Result<Verdict> {
    let Some(kubectl) = render::kubectl() else {
        println!("NOT RUN: kubectl is not on this machine, which renders the manifests (kubectl kustomize)");
        return Ok(Verdict::NotRun);
    };
    let schemas = match Schema::load_all() {
        // A file that is not the pinned one is worse than none.
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        loaded => loaded,
    };
    let policies = policies(&kubectl, &cargo::build_worker().await?)?;
    let mut passed = true;
    for (overlay, wanted) in read::<BTreeMap<String, Vec<String>>>("overlays.yaml")? {
        let rendered = render::text(&kubectl, &expected(&overlay))?;
        let mut found = problems(&policies, &overlay, &rendered)?;
        for schema in schemas.iter().flatten() {
            found.extend(schema.problems(&rendered)?);
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

/// Applies the admission policies to the cluster at hand and tries every planted fault that they must refuse, and production
/// itself, as dry runs on the server.
fn on_cluster(kubectl: &Path) -> Result<Verdict> {
    let scratch = tempfile::NamedTempFile::new()?;
    let apply = |text: &str, options: &[&str]| -> Result<Option<String>> {
        fs::write(&scratch, text)?;
        let mut command = Command::new(kubectl);
        let output = command.arg("apply").args(options).arg("--filename").arg(scratch.path()).output()?;
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let namespace = fs::read_to_string(expected("../k8s/base/namespace.yaml"))?;
    for first in [namespace, render::text(kubectl, &expected(ADMISSION))?] {
        let refusal = apply(&first, &[])?;
        ensure!(refusal.is_none(), "the admission policies cannot be applied: {refusal:?}");
    }
    let production = render::text(kubectl, &expected(PRODUCTION))?;
    let mut passed = true;
    for fault in read::<Vec<Fault>>("faults.yaml")? {
        let planted = fault.plant(&production)?;
        for problem in fault.found.iter().filter(|problem| problem.starts_with("muster-")) {
            let message = problem.rsplit(": ").next().unwrap_or(problem);
            let deadline = Instant::now() + EFFECT;
            let refused = loop {
                let refusal = apply(&planted, &["--dry-run=server"])?;
                let refused = refusal.is_some_and(|refusal| refusal.contains(message));
                if refused || Instant::now() > deadline {
                    break refused;
                }
                thread::sleep(Duration::from_secs(1));
            };
            println!("{}: {problem}", if refused { "refused" } else { "NOT REFUSED" });
            passed &= refused;
        }
    }
    let refusal = apply(&production, &["--dry-run=server"])?;
    println!("production: {}", refusal.as_deref().unwrap_or("admitted"));
    Ok(Verdict::of(passed && refusal.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_planted_fault_is_found() {
        let Some(kubectl) = render::kubectl_of_this_test() else { return };
        let policies = policies(&kubectl, &cargo::worker_of_this_test().await).unwrap();
        let production = render::text(&kubectl, &expected(PRODUCTION)).unwrap();
        let mut missed = Vec::new();
        for fault in read::<Vec<Fault>>("faults.yaml").unwrap() {
            let planted = fault.plant(&production).unwrap();
            let mut problems = problems(&policies, PRODUCTION, &planted).unwrap();
            if fault.found.iter().any(|problem| problem.starts_with("Kubernetes")) {
                let schemas = Schema::load_all().unwrap();
                problems.extend(schemas.iter().flat_map(|schema| schema.problems(&planted).unwrap()));
            }
            let is_found = |wanted: &String| problems.iter().any(|problem| problem.starts_with(wanted));
            missed.extend(fault.found.into_iter().filter(|wanted| !is_found(wanted)));
        }
        assert_eq!(missed, [""; 0]);
    }
}
