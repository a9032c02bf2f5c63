//! Alerts and dashboard ask for metrics that the worker has, and the alerts' tests pass. More is in infra/expected/rules.yaml.

use std::collections::BTreeSet;

use anyhow::Result;
use regex::Regex;
use serde_json::Value;
use xtask::tool::packaged;

use crate::cargo;
use crate::description::{describe, list, series, text};
use crate::verdict::Verdict;

/// The alerts, in Prometheus' own form.
pub(crate) const RULES: &str = "infra/observability/rules.yaml";
const TESTS: &str = "infra/observability/rules_test.yaml";
const DASHBOARD: &str = "infra/observability/dashboard.json";

/// Labels that Kubernetes' service discovery adds to every metric, and the one of a histogram's buckets.
const GIVEN: [&str; 5] = ["job", "namespace", "pod", "instance", "le"];

/// Checks all of it, and prints what is wrong. That the dashboard's queries have an answer is for the runbooks.
pub(crate) async fn check() -> Result<Verdict> {
    let description = describe(&cargo::build_worker().await?)?;
    let (alerts, panels) = (alerts()?, panel_queries("1m")?);
    let of_alerts = alerts.iter().map(|alert| (text(alert, "/alert"), text(alert, "/expr")));
    let of_panels = panels.iter().map(|(panel, query)| (panel.as_str(), query.as_str()));
    let mut problems = Vec::new();
    for (place, query) in of_alerts.chain(of_panels) {
        problems.extend(unknown(query, &description)?.iter().map(|problem| format!("{place}: {problem}")));
    }
    problems.iter().for_each(|problem| println!("{problem}"));
    println!("{} alerts and {} queries of panels: {} problems", alerts.len(), panels.len(), problems.len());
    let mut passed = problems.is_empty();
    let promtool = packaged("prometheus", "promtool").inspect_err(|error| println!("NOT RUN: {error:#}"));
    let Ok(program) = promtool else { return Ok(if passed { Verdict::NotRun } else { Verdict::Failed }) };
    for (command, file) in [("check", RULES), ("test", TESTS)] {
        passed &= cargo::run(&mut cargo::command(&program, &[command, "rules", file])).await?.success();
    }
    Ok(Verdict::of(passed))
}

pub(crate) fn alerts() -> Result<Vec<Value>> {
    let rules = cargo::yaml::<Value>(RULES)?;
    Ok(list(&rules, "/groups").iter().flat_map(|group| list(group, "/rules")).cloned().collect())
}

/// The queries of the dashboard, each behind its panel's title, with Grafana's variables replaced.
pub(crate) fn panel_queries(rate_interval: &str) -> Result<Vec<(String, String)>> {
    // JSON is YAML.
    let dashboard = cargo::yaml::<Value>(DASHBOARD)?;
    // A row that is folded up holds its panels itself.
    let panels = list(&dashboard, "/panels").iter().flat_map(|row| list(row, "/panels").iter().chain([row]));
    let queries = panels.flat_map(|panel| list(panel, "/targets").iter().map(move |target| (panel, target)));
    let queries = queries.map(|(panel, target)| {
        let query = text(target, "/expr").replace("$namespace", "muster");
        (text(panel, "/title").to_owned(), query.replace("$__rate_interval", rate_interval))
    });
    Ok(queries.collect())
}

/// What a query asks for and the worker does not have: metrics, and labels by which they are chosen or grouped.
fn unknown(query: &str, description: &Value) -> Result<Vec<String>> {
    let selector = Regex::new(r"\b((?:muster|process)_[a-z0-9_]+)((?:\{[^}]*\})?)")?;
    let chosen_by = Regex::new(r#"([a-z_]+)\s*(?:=~|!~|!=|=)\s*""#)?;
    let grouped_by = Regex::new(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")?;
    let series = series(description);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::for_tests;

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
            assert_eq!(unknown(query, &for_tests()).unwrap(), expected, "{query}");
        }
    }
}
