mod admission;
mod configuration;
pub(crate) mod pod;
pub(crate) mod render;
mod rules;
mod schema;
mod shape;

use std::process::ExitCode;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde_json::Value;
use xtask::services::WrongDigest;

use crate::expected;

const PRODUCTION: &str = "overlays/production";
/// What the production overlay must come to.
const EXPECTED: &str = "infra/expected/production.yaml";

/// What `cargo xtask manifests` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Show what holds too, not only what does not.
    #[arg(long)]
    all: bool,
    /// Print what production comes to, in the form of infra/expected/production.yaml.
    #[arg(long)]
    print: bool,
    /// On the cluster that kubectl speaks to, apply the admission policies and try planted faults and production on it.
    #[arg(long)]
    cluster: bool,
}

/// What was found of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    rule: &'static str,
    object: String,
    /// `None` when the rule holds.
    problem: Option<String>,
}

/// How the checks ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    NotRun,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.print || arguments.cluster {
        let root = crate::cargo::root();
        let kubectl = render::kubectl().context("kubectl is not on this machine")?;
        if arguments.print {
            let objects = render::objects(&kubectl, &root.join("infra/k8s").join(PRODUCTION))?;
            print!("{}", serde_norway::to_string(&shape::of(&objects))?);
            return Ok(ExitCode::SUCCESS);
        }
        let problems = admission::on_cluster(&kubectl, &root)?;
        for problem in &problems {
            println!("{problem}");
        }
        return Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    Ok(match check(arguments.all)? {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
        Outcome::NotRun => ExitCode::from(2),
    })
}

/// Compares production with what it must be, and its network flows with what the worker's configuration needs.
fn as_expected(expected: &Value, objects: &[Value]) -> Vec<Verdict> {
    let shape = shape::of(objects);
    let worker = "/pods/Deployment muster-worker/containers/worker/environment";
    let needed = shape::destinations(shape.pointer(worker).unwrap_or(&Value::Null));
    let flows: Vec<&str> = rules::list(&shape, "/flows").iter().filter_map(Value::as_str).collect();
    let let_out = |destination: &String| {
        let Some((namespace, port)) = destination.rsplit_once(':') else { return false };
        let from_worker = flows.iter().filter_map(|flow| flow.strip_prefix("muster-worker -> "));
        from_worker
            .into_iter()
            .any(|to| to.starts_with(&format!("{namespace}/")) && to.ends_with(&format!(" TCP {port}")))
    };
    let shut_in = needed
        .iter()
        .filter(|it| !let_out(it))
        .map(|it| format!("the worker's configuration sends it to {it}, and no network policy lets it out"));
    let mut problems = expected::differences(expected, &shape);
    problems.extend(shut_in);
    let verdict =
        |problem| Verdict { rule: "production is as expected", object: EXPECTED.to_owned(), problem };
    if problems.is_empty() {
        return vec![verdict(None)];
    }
    problems.into_iter().map(|problem| verdict(Some(problem))).collect()
}

/// Renders every kustomization and checks it against the schema and the rules. Prints a table.
pub(crate) fn check(all: bool) -> Result<Outcome> {
    let root = crate::cargo::root();
    let facts = configuration::Facts::read(&root)?;
    let Some(kubectl) = render::kubectl() else {
        println!("NOT RUN: kubectl is not on this machine, which renders the manifests (kubectl kustomize)");
        return Ok(Outcome::NotRun);
    };
    let schemas = match schema::Schema::load_all() {
        // Not to be had is one thing; a file that is not the pinned one another.
        Err(error) if error.is::<WrongDigest>() => return Err(error),
        loaded => loaded,
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["overlay", "rule", "object", "verdict"]);
    let (mut held, mut broken) = (0_usize, 0_usize);
    for overlay in render::OVERLAYS {
        let objects = render::objects(&kubectl, &root.join("infra/k8s").join(overlay))?;
        let mut verdicts = rules::check(overlay, &objects, &facts);
        if overlay == PRODUCTION {
            verdicts.extend(as_expected(&expected::read(&root.join(EXPECTED))?, &objects));
        }
        for schema in schemas.iter().flatten() {
            verdicts.extend(schema.check(&objects)?);
        }
        for Verdict { rule, object, problem } in verdicts {
            if problem.is_some() {
                broken += 1
            } else {
                held += 1
            }
            if all || problem.is_some() {
                table.add_row([overlay, rule, &object, problem.as_deref().unwrap_or("holds")]);
            }
        }
    }
    if all || broken > 0 {
        println!("{table}");
    }
    println!("{held} hold, {broken} do not");
    if broken > 0 {
        return Ok(Outcome::Failed);
    }
    if let Err(error) = schemas {
        println!("NOT RUN: the Kubernetes schema could not be had: {error:#}");
        return Ok(Outcome::NotRun);
    }
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each fault makes production another than it must be, whatever the other rules say of it.
    #[test]
    fn production_that_is_not_as_expected_is_found() {
        let root = crate::cargo::root();
        let Some(kubectl) = render::kubectl() else {
            println!("NOT RUN: no kubectl");
            assert!(std::env::var_os("GITHUB_ACTIONS").is_none(), "no kubectl");
            return;
        };
        let text = render::text(&kubectl, &root.join("infra/k8s").join(PRODUCTION)).unwrap();
        let expected = expected::read(&root.join(EXPECTED)).unwrap();
        let broken = |text: &str| -> Vec<String> {
            let verdicts = as_expected(&expected, &render::parse(text).unwrap());
            verdicts.into_iter().filter_map(|verdict| verdict.problem).collect()
        };
        assert_eq!(broken(&text), [""; 0]);
        // What somebody puts beside the objects that belong there.
        let role = "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: all, namespace: muster}\n";
        let open = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: open\n  \
                    namespace: muster\nspec:\n  podSelector: {}\n  egress:\n  - {}\n  policyTypes: [Egress]\n";
        let nats = "kubernetes.io/metadata.name: nats\n";
        let faults: [(&str, &str, &str); 12] = [
            ("MUSTER__ENVIRONMENT: production", "MUSTER__ENVIRONMENT: development", "MUSTER__ENVIRONMENT"),
            (
                "MUSTER__ENVIRONMENT: production",
                "MUSTER__NATS__MINIMUM_TLS: \"1.2\"",
                "MUSTER__NATS__MINIMUM_TLS",
            ),
            ("args:\n        - serve", "args: [serve, --config, /tmp/x]", "/command"),
            ("args:\n        - serve", "command: [/muster-worker, ask]", "/command"),
            (
                "        envFrom:\n",
                "        env: [{name: MUSTER__REQUIRE_TLS, value: \"false\"}]\n        envFrom:\n",
                "MUSTER__REQUIRE_TLS",
            ),
            (
                "configMapRef:\n            name: muster-worker-",
                "configMapRef:\n            name: other-",
                "from elsewhere",
            ),
            (nats, "kubernetes.io/metadata.name: default\n", "nats/nats TCP 4222"),
            (nats, "kubernetes.io/metadata.name: nats\n        matchExpressions: []\n", "matchExpressions"),
            (
                "      podSelector:\n        matchLabels:\n          app.kubernetes.io/name: nats\n",
                "",
                "nats/every pod",
            ),
            ("port: 4222", "port: 4222\n      endPort: 4300", "4222 to 4300"),
            (
                "MUSTER__NATS__URLS:",
                "MUSTER__TRACES__ENDPOINT: https://otel.tracing.svc:4318\n  MUSTER__NATS__URLS:",
                "no network policy lets it out",
            ),
            ("defaultMode: 256", "defaultMode: 420", "0644"),
        ];
        for (right, wrong, part) in faults {
            assert!(text.contains(right), "{right} is no longer in the manifests");
            let found = broken(&text.replace(right, wrong));
            assert!(found.iter().any(|it| it.contains(part)), "{right} -> {wrong}: {found:?}");
        }
        for (beside, part) in [(role, "Role all"), (open, "every pod -> anywhere any port")] {
            let found = broken(&format!("{text}{beside}"));
            assert!(found.iter().any(|it| it.contains(part)), "{beside}: {found:?}");
        }
    }

    /// What each optional component opens, exactly; in all else production stays as it is.
    #[test]
    fn a_component_opens_one_flow_and_no_more() {
        let root = crate::cargo::root();
        let Some(kubectl) = render::kubectl() else {
            println!("NOT RUN: no kubectl");
            assert!(std::env::var_os("GITHUB_ACTIONS").is_none(), "no kubectl");
            return;
        };
        let expected = expected::read(&root.join(EXPECTED)).unwrap();
        let facts = configuration::Facts::read(&root).unwrap();
        let flows = |shape: &Value| -> BTreeSet<String> {
            rules::list(shape, "/flows").iter().map(|flow| flow.as_str().unwrap().to_owned()).collect()
        };
        let dns: Vec<String> = ["muster-gateway", "muster-migrate", "muster-worker"]
            .iter()
            .flat_map(|from| ["TCP", "UDP"].map(|by| format!("{from} -> 169.254.20.10/32 but  {by} 53")))
            .collect();
        let collector = "muster-worker -> observability/opentelemetry-collector TCP 4318".to_owned();
        for (component, opened) in [("traces", vec![collector]), ("node-local-dns", dns)] {
            let objects = render::with_components(&kubectl, &root, &[component]).unwrap();
            let shape = shape::of(&objects);
            let added: BTreeSet<String> = flows(&shape).difference(&flows(&expected)).cloned().collect();
            assert_eq!(added, opened.into_iter().collect());
            assert!(flows(&expected).is_subset(&flows(&shape)), "{component} takes a flow away");
            // The rules know production's flows alone; all others hold.
            let broken =
                rules::check(PRODUCTION, &objects, &facts).into_iter().filter(|it| it.problem.is_some());
            let others: Vec<Verdict> = broken.filter(|it| !it.rule.starts_with("out: ")).collect();
            assert_eq!(others, []);
            let told = as_expected(&expected, &objects);
            assert!(
                told.iter().all(|it| !it.problem.as_deref().unwrap_or("").contains("lets it out")),
                "{told:?}"
            );
        }
    }
}
