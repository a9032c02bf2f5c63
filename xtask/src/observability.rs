//! Alerts and dashboard ask for metrics that the worker has, and each alert is tested.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};
use xtask::Verdict;
use xtask::services::{PrometheusPrograms, prometheus_programs};

use crate::cargo;
use crate::description::{Description, list, text};

/// The alerts, in Prometheus' own form.
pub(crate) const RULES: &str = "infra/observability/rules.yaml";
const TESTS: &str = "infra/observability/rules_test.yaml";
const DASHBOARD: &str = "infra/observability/dashboard.json";
const WORKER: &str = "infra/k8s/base/worker.yaml";

/// Labels that Kubernetes' service discovery adds to every metric, and the one of a histogram's buckets.
const GIVEN: [&str; 5] = ["job", "namespace", "pod", "instance", "le"];

pub(crate) async fn run() -> Result<ExitCode> {
    Ok(check().await?.into())
}

/// Checks all of it, and prints what is wrong.
pub(crate) async fn check() -> Result<Verdict> {
    let root = cargo::root();
    let description = Description::of(&cargo::build_worker().await?)?;
    let (alerts, panels) = (alerts(&root)?, panel_queries(&root, "1m")?);
    let of_alerts = alerts.iter().map(|alert| (text(alert, "/alert"), text(alert, "/expr")));
    let of_panels = panels.iter().map(|(panel, query)| (panel.as_str(), query.as_str()));
    let mut problems = untested(&alerts, &read_yaml(&root, TESTS)?);
    problems.extend(memory(&alerts, &read(&root, WORKER)?)?);
    for (place, query) in of_alerts.chain(of_panels) {
        problems
            .extend(unknown(query, &description)?.into_iter().map(|unknown| format!("{place}: {unknown}")));
    }
    for problem in &problems {
        println!("{problem}");
    }
    println!("{} alerts and {} queries of panels: {} problems", alerts.len(), panels.len(), problems.len());
    let programs = match prometheus_programs() {
        Ok(programs) => programs,
        Err(error) => {
            println!("NOT RUN: promtool: {error:#}");
            return Ok(if problems.is_empty() { Verdict::NotRun } else { Verdict::Failed });
        }
    };
    let passed = promtool(&programs, &["check", "rules", RULES])?
        && promtool(&programs, &["test", "rules", TESTS])?
        && can_be_parsed(&programs, &panels)?;
    Ok(Verdict::of(passed && problems.is_empty()))
}

/// The rules of all alerts.
pub(crate) fn alerts(root: &Path) -> Result<Vec<Value>> {
    let rules = read_yaml(root, RULES)?;
    Ok(list(&rules, "groups").flat_map(|group| list(group, "rules")).cloned().collect())
}

/// The queries of the dashboard, each behind its panel's title, with Grafana's variables replaced.
pub(crate) fn panel_queries(root: &Path, rate_interval: &str) -> Result<Vec<(String, String)>> {
    // JSON is YAML.
    let dashboard = read_yaml(root, DASHBOARD)?;
    // A row that is folded up holds its panels itself.
    let panels = list(&dashboard, "panels").flat_map(|panel| list(panel, "panels").chain([panel]));
    let queries = panels.flat_map(|panel| list(panel, "targets").map(move |target| (panel, target)));
    let queries = queries.map(|(panel, target)| {
        let query = text(target, "/expr").replace("$namespace", "muster");
        (text(panel, "/title").to_owned(), query.replace("$__rate_interval", rate_interval))
    });
    Ok(queries.collect())
}

pub(crate) fn read(root: &Path, path: &str) -> Result<String> {
    fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
}

fn read_yaml(root: &Path, path: &str) -> Result<Value> {
    serde_norway::from_str(&read(root, path)?).with_context(|| format!("{path} is not YAML"))
}

/// Alerts that no test sees fire, or none sees keep quiet.
fn untested(alerts: &[Value], tests: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for alert in alerts.iter().map(|alert| text(alert, "/alert")) {
        for (fires, what) in [(true, "fire"), (false, "keep quiet")] {
            let mut tests = list(tests, "tests").flat_map(|test| list(test, "alert_rule_test"));
            let is_this = |test: &Value| text(test, "/alertname") == alert;
            if !tests.any(|test| is_this(test) && list(test, "exp_alerts").next().is_some() == fires) {
                problems.push(format!("{TESTS} never sees {alert} {what}"));
            }
        }
    }
    problems
}

/// What a query asks for and the worker does not have: metrics, and labels by which they are chosen or grouped.
fn unknown(query: &str, description: &Description) -> Result<Vec<String>> {
    let selector = Regex::new(r"\b((?:muster|process)_[a-z0-9_]+)((?:\{[^}]*\})?)")?;
    let chosen_by = Regex::new(r#"([a-z_]+)\s*(?:=~|!~|!=|=)\s*""#)?;
    let grouped_by = Regex::new(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")?;
    let series = description.series();
    let mut of_query: BTreeSet<&str> = GIVEN.into();
    let mut problems = Vec::new();
    for (_, [metric, labels]) in selector.captures_iter(query).map(|found| found.extract()) {
        let Some(known) = series.get(metric) else {
            problems.push(format!("there is no metric {metric}"));
            continue;
        };
        of_query.extend(known);
        let labels = chosen_by.captures_iter(labels).map(|found| found.extract());
        let unknown = labels.filter(|(_, [label])| !GIVEN.contains(label) && !known.contains(label));
        problems.extend(unknown.map(|(_, [label])| format!("{metric} has no label {label}")));
    }
    let groups = grouped_by.captures_iter(query).map(|found| found.extract());
    let labels = groups.flat_map(|(_, [labels])| labels.split(',')).map(str::trim);
    let unknown = labels.filter(|label| !of_query.contains(label));
    problems.extend(unknown.map(|label| format!("no metric of the query has a label {label}")));
    Ok(problems)
}

/// The alert for memory fires at four fifths of the container's limit.
fn memory(alerts: &[Value], worker: &str) -> Result<Option<String>> {
    let manifests = serde_norway::Deserializer::from_str(worker).map(Value::deserialize);
    let manifests = manifests.collect::<Result<Vec<Value>, _>>()?;
    let limits =
        manifests.iter().map(|it| text(it, "/spec/template/spec/containers/0/resources/limits/memory"));
    let limit = limits.filter_map(|limit| limit.strip_suffix("Mi")?.parse::<u64>().ok()).max();
    let bytes = limit.with_context(|| format!("{WORKER} has no limit of memory in Mi"))? * 1_048_576 * 4 / 5;
    let is_right = alerts.iter().any(|alert| {
        text(alert, "/alert") == "MusterMemory" && text(alert, "/expr").ends_with(&format!("> {bytes}"))
    });
    Ok((!is_right).then(|| format!("MusterMemory must fire above {bytes}, by the limit in {WORKER}")))
}

/// Puts the dashboard's queries to the parser that will read them, as rules.
fn can_be_parsed(programs: &PrometheusPrograms, queries: &[(String, String)]) -> Result<bool> {
    let rules = queries.iter().map(|(_, query)| json!({"record": "panel:query", "expr": query}));
    let rules: Vec<Value> = rules.collect();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    fs::write(file.path(), json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string())?;
    promtool(programs, &["check", "rules", "--lint=none", &file.path().display().to_string()])
}

fn promtool(programs: &PrometheusPrograms, arguments: &[&str]) -> Result<bool> {
    let mut command = Command::new(&programs.promtool);
    let output =
        command.args(arguments).current_dir(cargo::root()).output().context("cannot run promtool")?;
    if !output.status.success() {
        println!("promtool {}:", arguments.join(" "));
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_for_a_metric_or_label_that_is_not_there_is_found() {
        for (query, expected) in [
            (r#"sum by (le) (rate(muster_requests_total{code="a", pod="b"}[5m])) / muster_ready"#, &[][..]),
            ("rate(muster_request_duration_seconds_bucket[5m])", &[]),
            ("muster_reddy == 0", &["there is no metric muster_reddy"]),
            ("muster_request_duration_seconds", &["there is no metric muster_request_duration_seconds"]),
            (r#"muster_ready{endpoint="a"}"#, &["muster_ready has no label endpoint"]),
            ("sum by (pod, scope) (muster_ready)", &["no metric of the query has a label scope"]),
        ] {
            assert_eq!(unknown(query, &Description::for_tests()).unwrap(), expected, "{query}");
        }
    }

    #[test]
    fn an_alert_that_is_not_seen_to_fire_and_to_keep_quiet_is_found() {
        for (seen, missing) in [(json!([]), "fire"), (json!([{}]), "keep quiet")] {
            let tests = json!({"tests": [{"alert_rule_test": [{"alertname": "A", "exp_alerts": seen}]}]});
            let problems = untested(&[json!({"alert": "A"})], &tests);
            assert_eq!(problems, [format!("{TESTS} never sees A {missing}")]);
        }
    }

    #[test]
    fn the_alert_for_memory_follows_the_limit() {
        let worker = "spec: {template: {spec: {containers: [{resources: {limits: {memory: 5Mi}}}]}}}";
        for (expr, is_right) in [("x > 4194304", true), ("x > 14194304", false)] {
            let alert = json!({"alert": "MusterMemory", "expr": expr});
            assert_eq!(memory(&[alert], worker).unwrap().is_none(), is_right, "{expr}");
        }
    }
}
