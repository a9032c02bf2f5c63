//! Alerts and dashboard: each has one source, and both ask for metrics that the worker has.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result};
use regex::Regex;
use serde::Deserialize;
use serde_json::Value;
use xtask::services::{PrometheusPrograms, prometheus_programs};

use crate::documentation::{facts::Facts, headings};
use crate::{cargo, dashboard};

/// The alerts, in Prometheus' own form.
pub(crate) const RULES: &str = "infra/observability/rules.yaml";
const TESTS: &str = "infra/observability/rules_test.yaml";
/// The same alerts for the Prometheus operator.
const OPERATOR: &str = "infra/k8s/monitoring/rules.yaml";
const WORKER: &str = "infra/k8s/base/worker.yaml";
/// The part of the container's memory that the alert allows.
const MEMORY_SHARE: f64 = 0.8;

/// What `cargo xtask observability` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write what is made from the sources: the dashboard for Grafana and the PrometheusRule for Kubernetes.
    #[arg(long)]
    write: bool,
}

/// Labels that Kubernetes' service discovery adds to every metric.
const OF_DISCOVERY: [&str; 4] = ["job", "namespace", "pod", "instance"];

#[expect(clippy::unwrap_used, reason = "a fixed pattern; the tests use it")]
static SELECTOR: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"\b((?:muster|process)_[a-z0-9_]+)(?:\{([^}]*)\})?"#).unwrap());
#[expect(clippy::unwrap_used, reason = "a fixed pattern; the tests use it")]
static LABEL: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"([a-z_]+)\s*(?:=~|!~|!=|=)\s*""#).unwrap());

/// How the checks ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    NotRun,
}

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Alert>,
}

#[derive(Deserialize)]
struct Alert {
    alert: String,
    expr: String,
    annotations: Annotations,
}

#[derive(Deserialize)]
struct Annotations {
    #[serde(default)]
    runbook: String,
}

#[derive(Deserialize)]
struct TestFile {
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    alert_rule_test: Vec<AlertTest>,
}

#[derive(Deserialize)]
struct AlertTest {
    alertname: String,
    exp_alerts: Vec<Value>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = cargo::root();
    if arguments.write {
        for (file, content) in made(&root)? {
            fs::write(root.join(file), content).with_context(|| format!("cannot write {file}"))?;
            println!("wrote {file}");
        }
    }
    Ok(match check().await? {
        Outcome::Passed => ExitCode::SUCCESS,
        Outcome::Failed => ExitCode::FAILURE,
        Outcome::NotRun => ExitCode::from(2),
    })
}

/// What is made from the sources: each file and its content.
fn made(root: &Path) -> Result<[(&'static str, String); 2]> {
    Ok([(dashboard::FILE, dashboard::json()), (OPERATOR, operator(&read(root, RULES)?))])
}

/// The alerts as an object of the Prometheus operator: the same text, two steps further in.
fn operator(rules: &str) -> String {
    let head = "# Made by `cargo xtask observability --write` from infra/observability/rules.yaml.\n\
                apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: muster-worker\nspec:\n";
    let body = rules.lines().skip_while(|line| !line.starts_with("groups:"));
    let indented = body.map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") });
    indented.fold(head.to_owned(), |text, line| text + &line)
}

/// The names of all alerts.
pub(crate) fn alerts(root: &Path) -> Result<BTreeSet<String>> {
    Ok(rules(root)?.into_iter().map(|alert| alert.alert).collect())
}

fn rules(root: &Path) -> Result<Vec<Alert>> {
    let file: RuleFile =
        serde_norway::from_str(&read(root, RULES)?).with_context(|| format!("{RULES} is not as expected"))?;
    Ok(file.groups.into_iter().flat_map(|group| group.rules).collect())
}

fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

/// Checks all of it, and prints what is wrong.
pub(crate) async fn check() -> Result<Outcome> {
    let root = cargo::root();
    let facts = Facts::read(&root, &cargo::build_worker().await?)?;
    let mut problems = Vec::new();
    for (file, content) in made(&root)? {
        if fs::read_to_string(root.join(file)).ok().as_deref() != Some(content.as_str()) {
            problems.push(format!("{file} is not current: run `cargo xtask observability --write`"));
        }
    }
    let alerts = rules(&root)?;
    let tests: TestFile = serde_norway::from_str(&read(&root, TESTS)?)
        .with_context(|| format!("{TESTS} is not as expected"))?;
    problems.extend(untested(&alerts, &tests));
    problems.extend(without_section(&root, &alerts)?);
    let of_alerts = alerts.iter().map(|alert| (alert.alert.as_str(), alert.expr.as_str()));
    let of_panels =
        dashboard::panels().flat_map(|panel| panel.queries.iter().map(|(query, _)| (panel.title, *query)));
    problems.extend(unknown_metrics(of_alerts.chain(of_panels), &facts));
    problems.extend(memory(&root, &alerts)?);
    for problem in &problems {
        println!("{problem}");
    }
    let programs = match prometheus_programs() {
        Ok(programs) => programs,
        Err(error) => {
            println!("NOT RUN: {error:#}");
            return Ok(if problems.is_empty() { Outcome::NotRun } else { Outcome::Failed });
        }
    };
    let passed = promtool(&programs, &["check", "rules", RULES])?
        && promtool(&programs, &["test", "rules", TESTS])?
        && queries_parse(&programs)?;
    println!(
        "{} alerts, {} panels with {} queries, {} problems",
        alerts.len(),
        dashboard::panels().count(),
        dashboard::panels().map(|panel| panel.queries.len()).sum::<usize>(),
        problems.len()
    );
    Ok(if passed && problems.is_empty() { Outcome::Passed } else { Outcome::Failed })
}

/// Each alert is seen to fire, and to keep quiet.
fn untested(alerts: &[Alert], tests: &TestFile) -> Vec<String> {
    let mut problems = Vec::new();
    for Alert { alert, .. } in alerts {
        let of_this = || {
            tests.tests.iter().flat_map(|test| &test.alert_rule_test).filter(|test| test.alertname == *alert)
        };
        if !of_this().any(|test| !test.exp_alerts.is_empty()) {
            problems.push(format!("{TESTS} never sees {alert} fire"));
        }
        if !of_this().any(|test| test.exp_alerts.is_empty()) {
            problems.push(format!("{TESTS} never sees {alert} keep quiet"));
        }
    }
    problems
}

/// Each alert names a section that is there.
fn without_section(root: &Path, alerts: &[Alert]) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for Alert { alert, annotations, .. } in alerts {
        let section = annotations.runbook.split_once('#');
        let there = section.is_some_and(|(file, anchor)| {
            fs::read_to_string(root.join(file))
                .is_ok_and(|text| headings(&text).iter().any(|it| it == anchor))
        });
        if !there {
            problems.push(format!("{alert} names the section {:?}, which is not there", annotations.runbook));
        }
    }
    Ok(problems)
}

/// Alerts and panels ask for metrics that the worker has, by labels that it gives.
fn unknown_metrics<'a>(queries: impl Iterator<Item = (&'a str, &'a str)>, facts: &Facts) -> Vec<String> {
    let mut problems = Vec::new();
    for (place, query) in queries {
        for (metric, labels) in metrics_of(query) {
            if !facts.knows_metric(&metric) {
                problems.push(format!("{place} asks for {metric}, which the worker does not have"));
                continue;
            }
            let unknown = labels.iter().filter(|label| {
                !OF_DISCOVERY.contains(&label.as_str()) && !facts.knows_label(&metric, label)
            });
            problems.extend(
                unknown.map(|label| format!("{place} asks for {metric} by {label}, which it does not have")),
            );
        }
    }
    problems
}

/// What a query asks for: each of the worker's metrics with the labels that it is chosen by.
fn metrics_of(query: &str) -> Vec<(String, Vec<String>)> {
    let found = SELECTOR.captures_iter(query).map(|found| {
        let part = |number| found.get(number).map_or("", |part: regex::Match<'_>| part.as_str());
        let labels = LABEL.captures_iter(part(2)).filter_map(|label| Some(label.get(1)?.as_str().to_owned()));
        (part(1).to_owned(), labels.collect())
    });
    found.collect()
}

/// The alert for memory knows the container's limit.
fn memory(root: &Path, alerts: &[Alert]) -> Result<Vec<String>> {
    let manifests = crate::manifests::render::parse(&read(root, WORKER)?)?;
    let mut limits = manifests.iter().filter_map(|manifest| {
        manifest
            .pointer("/spec/template/spec/containers/0/resources/limits/memory")?
            .as_str()?
            .strip_suffix("Mi")
    });
    let mebibytes: f64 = limits.next().context("the worker's memory has no limit in Mi")?.parse()?;
    let share = format!("{:.0}", (mebibytes * 1_048_576.0 * MEMORY_SHARE).floor());
    let knows = alerts.iter().any(|alert| alert.alert == "MusterMemory" && alert.expr.ends_with(&share));
    Ok(if knows {
        Vec::new()
    } else {
        vec![format!(
            "MusterMemory should compare with {share} bytes: {MEMORY_SHARE} of the limit in {WORKER}"
        )]
    })
}

/// The dashboard's queries are put to the parser that will read them, as rules.
fn queries_parse(programs: &PrometheusPrograms) -> Result<bool> {
    let queries: Vec<Value> = dashboard::panels()
        .flat_map(|panel| panel.queries)
        .enumerate()
        .map(|(number, (text, _))| {
            serde_json::json!({"record": format!("panel:query:{number}"), "expr": dashboard::query(text, "1m")})
        })
        .collect();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    // JSON is YAML.
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": queries}]});
    fs::write(file.path(), rules.to_string())?;
    promtool(programs, &["check", "rules", &file.path().display().to_string()])
}

fn promtool(programs: &PrometheusPrograms, arguments: &[&str]) -> Result<bool> {
    let output = Command::new(&programs.promtool)
        .args(arguments)
        .current_dir(cargo::root())
        .stdin(Stdio::null())
        .output()
        .context("cannot run promtool")?;
    if !output.status.success() {
        println!("promtool {}:", arguments.join(" "));
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(name: &str, expr: &str, runbook: &str) -> Alert {
        Alert {
            alert: name.to_owned(),
            expr: expr.to_owned(),
            annotations: Annotations { runbook: runbook.to_owned() },
        }
    }

    #[test]
    fn a_query_for_a_metric_or_label_that_is_not_there_is_found() {
        let facts = Facts::of_this_test(&cargo::root());
        let queries = [
            (
                "A",
                r#"sum by (le) (rate(muster_requests_total{code="muster_x", pod="a"}[5m])) / muster_ready"#,
            ),
            ("B", "muster_reddy == 0"),
            ("C", r#"muster_ready{endpoint="a"}"#),
            ("D", "rate(muster_request_duration_seconds_bucket[5m])"),
        ];
        assert_eq!(
            unknown_metrics(queries.into_iter(), &facts),
            [
                "B asks for muster_reddy, which the worker does not have",
                "C asks for muster_ready by endpoint, which it does not have"
            ]
        );
    }

    #[test]
    fn an_alert_without_test_or_section_is_found() {
        let tests = TestFile { tests: Vec::new() };
        let alerts = [
            alert("A", "1", "docs/architecture.md#invariants"),
            alert("B", "1", "docs/architecture.md#none"),
        ];
        assert_eq!(untested(&alerts, &tests).len(), 4);
        let without = without_section(&cargo::root(), &alerts).unwrap();
        assert!(without.len() == 1 && without[0].starts_with("B "), "{without:?}");
    }

    #[test]
    fn the_operators_rules_hold_the_same_groups() {
        let root = cargo::root();
        let rules = read(&root, RULES).unwrap();
        let source: Value = serde_norway::from_str(&rules).unwrap();
        let operator: Value = serde_norway::from_str(&operator(&rules)).unwrap();
        assert_eq!(operator["spec"]["groups"], source["groups"]);
    }

    #[test]
    fn the_alert_for_memory_follows_the_limit() {
        let root = cargo::root();
        assert_eq!(memory(&root, &rules(&root).unwrap()).unwrap(), Vec::<String>::new());
        assert_eq!(memory(&root, &[alert("MusterMemory", "x > 1", "")]).unwrap().len(), 1);
    }
}
