//! The metrics are those of the list, each of its kind and with its labels.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::setting::{Guild, Setting, community, eventually};
use muster_messaging::api::{Caller, community};

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_shown_are_the_metrics_listed() -> Result<()> {
    let setting = Setting::new().await?;
    let mut described: Value = serde_json::from_slice(&setting.configuration.run("describe").await?.stdout)?;
    let listed: Vec<Value> = serde_json::from_value(described["metrics"].take())?;
    let worker = setting.serve()?;
    let (client, publisher) = setting.client().await?;
    publisher.publish(&Guild::new("tabr").join_guild()).await?;
    let id = community(&client, "tabr").await?;
    client.on_behalf_of(Caller::parse("paul")?).community(id).ask(&community::Stats {}).await?;
    let shown = || worker.get("/metrics").map(|(_, text)| text).unwrap_or_default();
    eventually("every metric", async || {
        let text = shown();
        let missing =
            |metric: &&Value| !text.contains(&format!("\n# TYPE {} ", metric["name"].as_str().unwrap()));
        // Nothing has failed here, and there is no standby.
        let none = ["muster_query_failures_total", "muster_standby_in_use", "muster_standby_lag_seconds"];
        listed.iter().filter(missing).all(|metric| none.iter().any(|name| metric["name"] == *name))
    })
    .await?;

    let text = shown();
    let mut kinds = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind);
            let metric = listed.iter().find(|metric| metric["name"] == name);
            let metric = metric.with_context(|| format!("{name} is not listed"))?;
            ensure!(metric["kind"] == kind, "{name} is a {kind}");
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (series, _) = line.rsplit_once(' ').context("a line without a value")?;
        let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
        let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let name = whole.filter(|whole| kinds.get(whole) == Some(&"histogram")).unwrap_or(name);
        let labels: BTreeSet<&str> = labels
            .split("\",")
            .filter_map(|label| label.split_once('=').map(|(label, _)| label))
            .filter(|label| *label != "le")
            .collect();
        let metric = listed
            .iter()
            .find(|metric| metric["name"] == name)
            .with_context(|| format!("{name} is not listed"))?;
        let expected: BTreeSet<&str> =
            metric["labels"].as_array().context("labels")?.iter().filter_map(Value::as_str).collect();
        ensure!(labels == expected, "{line}");
    }
    let at_work = |series: &str| {
        text.lines().any(|line| line.strip_prefix(series).is_some_and(|value| value.trim() != "0"))
    };
    for series in [
        "muster_requests_total{endpoint=\"community.stats\",code=\"ok\"}",
        "muster_rate_limit_decisions_total{scope=\"caller\",decision=\"allowed\"}",
        "muster_rate_limit_decisions_total{scope=\"community\",decision=\"allowed\"}",
        "muster_query_duration_seconds_count{query=\"community_stats\"}",
        "muster_tls_handshakes_total{place=\"nats\",verdict=\"accepted\"}",
        "muster_tls_peers{place=\"postgres\",version=\"TLS 1.3\"}",
        "muster_database_connections{state=\"max\"}",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        ensure!(at_work(series), "{series} stands at nothing in\n{text}");
    }
    ensure!(text.lines().count() < 3000, "the number of series is bounded");
    Ok(())
}
