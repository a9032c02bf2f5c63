//! The admission policies of `infra/k8s/admission`: what they must refuse, and what they must let in.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::render;

pub(super) const POLICIES: &str = "admission";
/// How long a policy may take to have effect once it is applied.
const EFFECT: Duration = Duration::from_secs(60);

/// A fault planted into the production overlay: the object, what stands in it, what is written instead, and how the refusal
/// begins.
struct Planted {
    object: &'static str,
    right: &'static str,
    wrong: &'static str,
    refusal: &'static str,
}

const fn planted(
    object: &'static str,
    right: &'static str,
    wrong: &'static str,
    refusal: &'static str,
) -> Planted {
    Planted { object, right, wrong, refusal }
}

const WORKER: &str = "Deployment muster-worker";
const MIGRATION: &str = "Job muster-migrate";
const CONFIGURATION: &str = "ConfigMap muster-worker";

const PLANTED: [Planted; 17] = [
    planted(
        WORKER,
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "a container's root is writable",
    ),
    planted(MIGRATION, "readOnlyRootFilesystem: true", "runAsUser: 65532", "a container's root is writable"),
    planted(WORKER, "hostUsers: false", "hostUsers: true", "the pod's users are the host's"),
    planted(WORKER, "hostUsers: false", "shareProcessNamespace: false", "the pod's users are the host's"),
    planted(
        WORKER,
        "automountServiceAccountToken: false",
        "automountServiceAccountToken: true",
        "the pod gets a token",
    ),
    planted(
        WORKER,
        "      volumes:\n",
        "      volumes:\n      - name: token\n        projected:\n          sources:\n          - serviceAccountToken:\n              path: token\n",
        "the pod gets a token",
    ),
    planted(WORKER, AT_DIGEST, ":1.0.0", "an image is not named by its digest"),
    planted(WORKER, "aaaaaaaa", "00000000", "an image is not named by its digest"),
    planted(
        WORKER,
        "image: registry.example/muster/",
        "image: elsewhere.example/muster/",
        "an image is from elsewhere",
    ),
    planted(WORKER, "defaultMode: 256", "defaultMode: 292", "a secret can be read by everybody"),
    planted(
        WORKER,
        "path: ca.crt\n",
        "path: ca.crt\n                mode: 420\n",
        "a secret can be read by everybody",
    ),
    planted(
        WORKER,
        "        envFrom:\n",
        "        env:\n        - name: MUSTER__ENVIRONMENT\n          value: development\n        envFrom:\n",
        "a variable of the container takes TLS away",
    ),
    planted(
        MIGRATION,
        "        envFrom:\n",
        "        env:\n        - name: MUSTER__DATABASE__MINIMUM_TLS\n          value: \"1.2\"\n        envFrom:\n",
        "a variable of the container takes TLS away",
    ),
    planted(
        CONFIGURATION,
        "MUSTER__ENVIRONMENT: production",
        "MUSTER__ENVIRONMENT: test",
        "MUSTER__ENVIRONMENT must be",
    ),
    planted(
        CONFIGURATION,
        "URLS: tls://",
        "URLS: tls://a:1,nats://",
        "a NATS server of MUSTER__NATS__URLS is not TLS",
    ),
    planted(
        CONFIGURATION,
        "data:\n",
        "data:\n  MUSTER__NATS__MINIMUM_TLS: \"1.2\"\n",
        "TLS before 1.3 is allowed",
    ),
    planted(
        CONFIGURATION,
        "data:\n",
        "data:\n  MUSTER__TRACES__ENDPOINT: http://collector:4318\n",
        "MUSTER__TRACES__ENDPOINT is not https://",
    ),
];
/// A digest that names an image, in place of the overlay's zeros.
const AT_DIGEST: &str = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

impl Planted {
    /// The object with the fault; `production` is the rendered overlay.
    fn object(&self, production: &str) -> Result<String> {
        let right = shipped(production, self.object)?;
        ensure!(right.contains(self.right), "{} is no longer in {}", self.right, self.object);
        Ok(right.replace(self.right, self.wrong))
    }
}

/// An object of the rendered overlay, with an image that exists.
fn shipped(production: &str, object: &str) -> Result<String> {
    let found = production.split("\n---\n").find(|text| {
        // The name of a generated map ends with its digest.
        let names = render::parse(text).unwrap_or_default();
        names.first().is_some_and(|it| {
            let name = super::rules::name(it);
            name == object || (object == CONFIGURATION && name.starts_with(object))
        })
    });
    let found = found.with_context(|| format!("the overlay has no {object}"))?;
    Ok(found.replace(&format!("@sha256:{}", "0".repeat(64)), AT_DIGEST))
}

/// Applies the policies to the cluster at hand and tries every planted fault and the whole of production on it, as a dry run
/// on the server. Answers what was not as it must be.
pub(super) fn on_cluster(kubectl: &Path, root: &Path) -> Result<Vec<String>> {
    let production = render::text(kubectl, &root.join("infra/k8s/overlays/production"))?;
    let policies = render::text(kubectl, &root.join("infra/k8s").join(POLICIES))?;
    let apply = |text: &str, dry: bool| apply(kubectl, text, dry);
    for object in ["Namespace muster", "PriorityClass muster-worker"] {
        apply(&shipped(&production, object)?, false)?.map_err(anyhow::Error::msg)?;
    }
    apply(&policies, false)?.map_err(anyhow::Error::msg)?;
    let mut problems = Vec::new();
    for planted in &PLANTED {
        let object = planted.object(&production)?;
        let started = Instant::now();
        let problem = loop {
            let refused = match apply(&object, true)? {
                Err(refusal) if refusal.contains(planted.refusal) => break None,
                Err(refusal) => format!("it is refused otherwise: {refusal}"),
                Ok(()) => "it is admitted".to_owned(),
            };
            if started.elapsed() > EFFECT {
                break Some(format!("{}: {} -> {}: {refused}", planted.object, planted.right, planted.wrong));
            }
            thread::sleep(Duration::from_secs(1));
        };
        println!("{}: {}", if problem.is_none() { "refused" } else { "NOT REFUSED" }, planted.refusal);
        problems.extend(problem);
    }
    let real = production.replace(&format!("@sha256:{}", "0".repeat(64)), AT_DIGEST);
    match apply(&real, true)? {
        Ok(()) => println!("admitted: the production overlay"),
        Err(refusal) => problems.push(format!("the production overlay is refused: {refusal}")),
    }
    Ok(problems)
}

/// Applies manifests; the inner error is the server's refusal.
fn apply(kubectl: &Path, text: &str, dry: bool) -> Result<Result<(), String>> {
    let mut command = Command::new(kubectl);
    command.args(["apply", "--filename", "-"]).args(dry.then_some("--dry-run=server"));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run kubectl")?;
    let Some(mut input) = child.stdin.take() else { bail!("kubectl takes no input") };
    input.write_all(text.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let refusal = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(refusal) })
}

#[cfg(test)]
mod tests {
    use cel::{Program, Value as Cel};
    use serde::{Serialize, Serializer};
    use serde_json::{Value, json};

    use super::*;
    use crate::manifests::rules::{list, text};

    /// A value whose whole numbers are `int`, as they are in the API server.
    struct Typed<'a>(&'a Value);

    impl Serialize for Typed<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0 {
                Value::Number(number) if number.as_i64().is_some() => {
                    serializer.serialize_i64(number.as_i64().unwrap())
                }
                Value::Array(items) => serializer.collect_seq(items.iter().map(Typed)),
                Value::Object(fields) => {
                    serializer.collect_map(fields.iter().map(|(key, it)| (key, Typed(it))))
                }
                other => other.serialize(serializer),
            }
        }
    }

    /// What a policy says of an object: the messages of the validations that fail, as the API server works them out. The
    /// server's own evaluation is asked by `cargo xtask manifests --cluster`.
    fn refusals(policies: &[Value], object: &str) -> Vec<String> {
        let object = render::parse(object).unwrap().remove(0);
        let kind = text(&object, "/kind");
        let plural = format!("{}s", kind.to_lowercase());
        let params = policies.iter().find(|it| text(it, "/kind") == "ConfigMap").unwrap();
        let mut refused = Vec::new();
        for policy in policies.iter().filter(|it| text(it, "/kind") == "ValidatingAdmissionPolicy") {
            let mut rules = list(policy, "/spec/matchConstraints/resourceRules").iter();
            if !rules.any(|rule| list(rule, "/resources").contains(&json!(plural))) {
                continue;
            }
            let mut variables = serde_json::Map::new();
            let evaluate = |expression: &str, variables: &serde_json::Map<String, Value>| -> Cel {
                let mut context = cel::Context::default();
                context.add_variable("object", Typed(&object)).unwrap();
                context.add_variable("params", Typed(params)).unwrap();
                context.add_variable("variables", Typed(&Value::Object(variables.clone()))).unwrap();
                let program =
                    Program::compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
                program.execute(&context).unwrap_or_else(|error| panic!("{expression}: {error}"))
            };
            for condition in list(policy, "/spec/matchConditions") {
                if evaluate(text(condition, "/expression"), &variables) != Cel::Bool(true) {
                    return refused;
                }
            }
            for variable in list(policy, "/spec/variables") {
                let value = evaluate(text(variable, "/expression"), &variables).json().unwrap();
                variables.insert(text(variable, "/name").to_owned(), value);
            }
            for validation in list(policy, "/spec/validations") {
                if evaluate(text(validation, "/expression"), &variables) != Cel::Bool(true) {
                    refused.push(text(validation, "/message").to_owned());
                }
            }
        }
        refused
    }

    #[test]
    fn every_planted_pod_and_configuration_is_refused_and_production_is_admitted() {
        let root = crate::cargo::root();
        let Some(kubectl) = render::kubectl() else {
            println!("NOT RUN: no kubectl");
            assert!(std::env::var_os("GITHUB_ACTIONS").is_none(), "no kubectl");
            return;
        };
        let rendered = |path: &str| render::text(&kubectl, &root.join("infra/k8s").join(path)).unwrap();
        let production = rendered("overlays/production");
        let policies = render::parse(&rendered(POLICIES)).unwrap();
        for object in [WORKER, MIGRATION, CONFIGURATION, "Deployment muster-gateway"] {
            assert_eq!(refusals(&policies, &shipped(&production, object).unwrap()), [""; 0], "{object}");
        }
        for planted in &PLANTED {
            let found = refusals(&policies, &planted.object(&production).unwrap());
            assert!(
                found.iter().any(|message| message.starts_with(planted.refusal)),
                "{}: {} -> {}: {found:?}",
                planted.object,
                planted.right,
                planted.wrong
            );
        }
    }
}
