//! The Kubernetes manifests, rendered, against Kubernetes' schema, the admission policies and the rules of infra/expected.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use cel::{Context, Env, Program, Value as Cel, extensions};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use xtask::tool::{WrongDigest, fetched, output};

use crate::cargo::yaml;
use crate::description::{describe, list, text};
use crate::verdict::Verdict;
use crate::{cargo, observability};

const PRODUCTION: &str = "../k8s/overlays/production";
const ADMISSION: &str = "../k8s/admission";
const TRY: &str = "infra/k8s/admission/try.sh";

/// The versions whose schemas are asked: the lowest that the manifests are for (infra/k8s/README.md) and the newest.
const KUBERNETES: [&str; 2] = ["1.33.0", "1.37.0"];
/// The groups of the Prometheus operator and of Sigstore's policy controller, whose kinds are not Kubernetes' own.
const CUSTOM: [&str; 2] = ["monitoring.coreos.com/", "policy.sigstore.dev/"];

/// A fault from infra/expected/faults.yaml.
#[derive(Deserialize)]
struct Fault {
    /// The overlay that it is planted in, unless that is production.
    of: Option<String>,
    /// Whether a cluster refuses it for another reason first.
    #[serde(default)]
    not_on_cluster: bool,
    /// The part of the rendered text that is replaced; without it, `with` is one more object.
    replace: Option<String>,
    with: String,
    /// How the problems begin that must be found.
    found: Vec<String>,
}

impl Fault {
    fn plant(&self, rendered: &str) -> Result<String> {
        let Some(right) = &self.replace else { return Ok(format!("{rendered}---\n{}", self.with)) };
        ensure!(rendered.contains(right), "{right} is no longer in the manifests");
        Ok(rendered.replace(right, &self.with))
    }
}

/// A file of infra/expected, or an overlay named from there.
fn expected(file: &str) -> PathBuf {
    cargo::root().join("infra/expected").join(file)
}

/// The admission policies, and those of infra/expected/rules.yaml.
fn policies(worker: &Path) -> Result<Policies> {
    let mut policies = parse(&render(&expected(ADMISSION))?)?;
    let registry = policies.iter().find(|object| text(object, "/kind") == "ConfigMap");
    let registry = registry.and_then(Value::as_object).context("the admission policies have no ConfigMap")?;
    let mut params = registry.clone();
    let described = describe(worker)?;
    let keys = list(&described, "/keys").iter();
    let defaults = keys.map(|key| (text(key, "/variable").to_owned(), key["default"].clone()));
    params.insert("defaults".to_owned(), defaults.collect());
    params.insert("dockerfile".to_owned(), cargo::read("infra/docker/Dockerfile")?.into());
    params.insert("alerts".to_owned(), observability::alerts()?.into());
    params.insert("alert_tests".to_owned(), yaml("infra/observability/rules_test.yaml")?);
    params.insert("production".to_owned(), parse(&rendered(PRODUCTION)?)?.into());
    params.insert("release".to_owned(), yaml(".github/workflows/release.yml")?);
    policies.extend(parse(&cargo::read("infra/expected/rules.yaml")?)?);
    Policies::read(&policies, params)
}

/// What is wrong with a rendered overlay, beyond what the schema says.
fn problems(policies: &Policies, overlay: &str, rendered: &str) -> Result<Vec<String>> {
    let mut objects = parse(rendered)?;
    objects.push(json!({"kind": "Overlay", "metadata": {"name": overlay}}));
    let mut problems = policies.refusals(&objects);
    let own = overlay.rsplit('/').next().unwrap_or(overlay);
    let golden = if overlay.contains("overlays/") { "production" } else { own }.to_owned() + ".yaml";
    let file = tempfile::NamedTempFile::new()?;
    fs::write(&file, rendered)?;
    let mut diff = Command::new("diff");
    let output = diff.arg("--unified=0").arg(expected(&golden)).arg(file.path()).output()?;
    ensure!(output.status.code().is_some_and(|code| code < 2), "diff cannot compare {golden}");
    let differences = String::from_utf8(output.stdout)?;
    let lines = differences.lines().skip(2).filter(|line| !line.starts_with("@@"));
    problems.extend(lines.map(|line| format!("{golden}: {line}")));
    Ok(problems)
}

/// Renders every overlay of infra/expected/overlays.yaml and prints what is wrong with it.
pub(crate) async fn check() -> Result<Verdict> {
    if !has_kubectl() {
        return Ok(Verdict::NotRun);
    }
    let schemas = match schemas() {
        Ok(schemas) => Some(schemas),
        // A file that is not the pinned one is worse than none.
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        Err(error) => {
            println!("NOT RUN: the schema of Kubernetes cannot be fetched: {error:#}");
            None
        }
    };
    let policies = policies(&cargo::build_worker().await?)?;
    let mut passed = true;
    for (overlay, wanted) in yaml::<BTreeMap<String, Vec<String>>>("infra/expected/overlays.yaml")? {
        let rendered = rendered(&overlay)?;
        let mut found = problems(&policies, &overlay, &rendered)?;
        if let Some(schemas) = &schemas {
            found.extend(refused(schemas, &rendered)?);
        }
        println!("{overlay}: {}", if found == wanted { "as expected" } else { "NOT AS EXPECTED" });
        found.iter().filter(|problem| !wanted.contains(problem)).for_each(|it| println!("  {it}"));
        wanted.iter().filter(|it| !found.contains(it)).for_each(|it| println!("  no longer so: {it}"));
        passed &= found == wanted;
    }
    Ok(if passed && schemas.is_none() { Verdict::NotRun } else { Verdict::of(passed) })
}

/// Tries every planted fault that the admission policies must refuse, and production itself, on the cluster.
pub(crate) async fn on_cluster() -> Result<Verdict> {
    let production = rendered(PRODUCTION)?;
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("production.yaml"), &production)?;
    let faults = yaml::<Vec<Fault>>("infra/expected/faults.yaml")?;
    let faults = faults.iter().filter(|fault| fault.of.is_none() && !fault.not_on_cluster);
    for (fault, number) in faults.zip(100..) {
        let refusals = fault.found.iter().filter(|problem| problem.starts_with("muster-"));
        let message = |it: &String| Some(it.rsplit_once(": ")?.1.to_owned() + "\n");
        let messages: String = refusals.filter_map(message).collect();
        if !messages.is_empty() {
            fs::write(directory.path().join(format!("{number}.yaml")), fault.plant(&production)?)?;
            fs::write(directory.path().join(format!("{number}.refusals")), messages)?;
        }
    }
    cargo::passes(cargo::command("bash", &[TRY]).arg(directory.path())).await
}

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

/// An overlay of infra/expected/overlays.yaml with images as a release promotes them: any whole digest counts as this one.
fn rendered(overlay: &str) -> Result<String> {
    let promoted = format!("@sha256:{}\n", "a".repeat(64));
    let digest = Regex::new("@sha256:[0-9a-f]{64}\n")?;
    Ok(digest.replace_all(&render(&expected(overlay))?, promoted).into_owned())
}

pub(crate) fn parse(text: &str) -> Result<Vec<Value>> {
    let documents = serde_norway::Deserializer::from_str(text);
    let objects = documents.map(|document| Value::deserialize(document).context("a manifest is not YAML"));
    objects.filter(|object| !matches!(object, Ok(Value::Null))).collect()
}

/// Reads them from the cache, where they are fetched at their digest.
fn schemas() -> Result<BTreeMap<&'static str, Value>> {
    let inside = fetched("kubernetes-validate")?;
    let load = |version| {
        let file = inside.join(format!("v{version}-local-strict/_definitions.json"));
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut whole: Value = serde_json::from_slice(&text).context("the schema is not JSON")?;
        Ok((version, whole.get_mut("$defs").context("the schema has no definitions")?.take()))
    };
    KUBERNETES.into_iter().map(load).collect()
}

fn refused(schemas: &BTreeMap<&str, Value>, rendered: &str) -> Result<Vec<String>> {
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
        } else if !CUSTOM.iter().any(|group| api.starts_with(group)) {
            say(format!("there is no {kind} in {api}"));
        }
    }
    Ok(problems)
}

/// Each ValidatingAdmissionPolicy, evaluated as the API server does, and what their expressions know as `params`.
struct Policies {
    env: Arc<Env>,
    policies: Vec<Policy>,
    params: Map<String, Value>,
}

struct Policy {
    name: String,
    /// The kinds that it is for, in lower case and the plural.
    resources: Vec<Value>,
    /// Expressions, each with its name or message.
    conditions: Vec<(String, Program)>,
    variables: Vec<(String, Program)>,
    validations: Vec<(String, Program)>,
}

impl Policies {
    fn read(objects: &[Value], params: Map<String, Value>) -> Result<Self> {
        let mut env = Env::stdlib();
        env.add_extension(extensions::strings).and_then(|()| env.add_extension(extensions::lists))?;
        let policies = objects.iter().filter(|it| text(it, "/kind") == "ValidatingAdmissionPolicy");
        let policies = policies.map(|policy| Policy::read(&env, policy)).collect::<Result<_>>()?;
        Ok(Self { env: Arc::new(env), policies, params })
    }

    /// Why objects, together `params.objects`, are refused: a line for each validation that does not hold, or fails.
    fn refusals(&self, objects: &[Value]) -> Vec<String> {
        let mut params = self.params.clone();
        params.insert("objects".to_owned(), objects.into());
        let mut context = Context::with_env(Arc::clone(&self.env));
        context.add_variable_from_value("params", to_cel(&params.into()));
        let mut refusals = Vec::new();
        for object in objects {
            let resource = Value::from(format!("{}s", text(object, "/kind").to_lowercase()));
            context.add_variable_from_value("object", to_cel(object));
            for policy in self.policies.iter().filter(|policy| policy.resources.contains(&resource)) {
                let messages = policy.refusals(context.new_inner_scope()).into_iter();
                refusals.extend(messages.map(|it| format!("{}: {}: {it}", policy.name, name(object))));
            }
        }
        refusals
    }
}

impl Policy {
    fn read(env: &Env, policy: &Value) -> Result<Self> {
        let compile = |pointer: &str, label: &str| -> Result<Vec<(String, Program)>> {
            let compile = |it| {
                let source = text(it, "/expression");
                let program = env.compile(source).map_err(|error| anyhow!("{error}"));
                Ok((text(it, label).to_owned(), program.with_context(|| source.to_owned())?))
            };
            list(policy, pointer).iter().map(compile).collect()
        };
        let rules = list(policy, "/spec/matchConstraints/resourceRules").iter();
        Ok(Self {
            name: text(policy, "/metadata/name").to_owned(),
            resources: rules.flat_map(|rule| list(rule, "/resources")).cloned().collect(),
            conditions: compile("/spec/matchConditions", "/name")?,
            variables: compile("/spec/variables", "/name")?,
            validations: compile("/spec/validations", "/message")?,
        })
    }

    fn refusals(&self, mut context: Context<'_, '_>) -> Vec<String> {
        if self.conditions.iter().any(|(_, condition)| condition.execute(&context) == Ok(Cel::Bool(false))) {
            return Vec::new();
        }
        let mut variables = HashMap::new();
        for (name, program) in &self.variables {
            // What uses a variable that cannot be evaluated cannot be evaluated either.
            if let Ok(value) = program.execute(&context) {
                variables.insert(name.clone(), value);
                context.add_variable_from_value("variables", variables.clone());
            }
        }
        let refusals =
            self.validations.iter().filter_map(|(message, program)| match program.execute(&context) {
                Ok(Cel::Bool(true)) => None,
                Ok(_) => Some(message.clone()),
                Err(error) => Some(format!("{message} ({error})")),
            });
        refusals.collect()
    }
}

/// The same value, whose whole numbers are `int` as in the API server.
fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::from(*value),
        Value::Number(number) => number.as_i64().map_or_else(|| Cel::from(number.as_f64()), Cel::from),
        Value::String(text) => Cel::from(text.as_str()),
        Value::Array(items) => Cel::from(items.iter().map(to_cel).collect::<Vec<_>>()),
        Value::Object(fields) => {
            Cel::from(fields.iter().map(|(key, it)| (key.clone(), to_cel(it))).collect::<HashMap<_, _>>())
        }
    }
}

/// An object's kind and name, without the hash that kustomize gives a ConfigMap.
fn name(object: &Value) -> String {
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    let stem = name.rsplit_once('-').filter(|(_, hash)| kind == "ConfigMap" && hash.len() == 10);
    format!("{kind} {}", stem.map_or(name, |(stem, _)| stem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_planted_fault_is_found() {
        if !has_kubectl() {
            return assert_eq!(Verdict::NotRun.enforced(), Verdict::NotRun);
        }
        let policies = policies(&cargo::build_worker().await.unwrap()).unwrap();
        let overlays: BTreeMap<String, Vec<String>> = yaml("infra/expected/overlays.yaml").unwrap();
        let overlays: BTreeMap<_, _> = overlays.keys().map(|it| (it, rendered(it).unwrap())).collect();
        let mut missed = Vec::new();
        for fault in yaml::<Vec<Fault>>("infra/expected/faults.yaml").unwrap() {
            let overlay = fault.of.clone().unwrap_or(PRODUCTION.to_owned());
            let planted = fault.plant(&overlays[&overlay]).unwrap();
            let mut problems = problems(&policies, &overlay, &planted).unwrap();
            if fault.found.iter().any(|problem| problem.starts_with("Kubernetes")) {
                problems.extend(refused(&schemas().unwrap(), &planted).unwrap());
            }
            let is_found = |wanted: &String| problems.iter().any(|problem| problem.starts_with(wanted));
            missed.extend(fault.found.into_iter().filter(|wanted| !is_found(wanted)));
        }
        assert_eq!(missed, [""; 0]);
    }
}
