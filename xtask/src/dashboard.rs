//! The dashboard: its one source is [`ROWS`]; the file for Grafana, the picture and the checks come from it.

pub(crate) mod picture;

use serde_json::{Value, json};

/// Where the dashboard for Grafana lies.
pub(crate) const FILE: &str = "infra/observability/dashboard.json";
/// How wide a row is, in Grafana's units.
const WIDTH: usize = 24;
const HEIGHT: usize = 7;

/// Some panels under one title, side by side.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) panels: &'static [Panel],
}

/// One graph.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    /// What it tells, and what to do when it looks wrong.
    pub(crate) about: &'static str,
    pub(crate) unit: Unit,
    /// Each a query, in which `$namespace` is chosen by the reader and `$__rate_interval` by Grafana, and the name of its
    /// lines, in which `{{label}}` stands for a label.
    pub(crate) queries: &'static [(&'static str, &'static str)],
}

/// What a panel's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Number,
    PerSecond,
    Seconds,
    Bytes,
    Days,
    Ratio,
}

impl Unit {
    /// As Grafana calls it.
    const fn grafana(self) -> &'static str {
        match self {
            Self::Number => "short",
            Self::PerSecond => "reqps",
            Self::Seconds => "s",
            Self::Bytes => "bytes",
            Self::Days => "d",
            Self::Ratio => "percentunit",
        }
    }
}

pub(crate) const ROWS: &[Row] = &[
    Row {
        title: "At a glance",
        panels: &[
            Panel {
                title: "Workers",
                about: "Workers that can be reached, and parts that are not ready.",
                unit: Unit::Number,
                queries: &[
                    (r#"sum(up{job="muster-worker", namespace="$namespace"})"#, "reached"),
                    (r#"count(muster_ready{namespace="$namespace"} == 0) or vector(0)"#, "parts not ready"),
                ],
            },
            Panel {
                title: "Errors",
                about: "The part of the requests that fails for the worker's own reasons.",
                unit: Unit::Ratio,
                queries: &[(
                    r#"(sum(rate(muster_requests_total{namespace="$namespace", code=~"internal|unavailable"}[$__rate_interval])) or vector(0)) / sum(rate(muster_requests_total{namespace="$namespace"}[$__rate_interval]))"#,
                    "internal or unavailable",
                )],
            },
            Panel {
                title: "Age of the oldest event that is not applied",
                about: "Above 300 s events come late: section 7.1 of the runbook.",
                unit: Unit::Seconds,
                queries: &[(
                    r#"max(muster_events_oldest_pending_seconds{namespace="$namespace"})"#,
                    "oldest pending",
                )],
            },
        ],
    },
    Row {
        title: "Requests",
        panels: &[
            Panel {
                title: "Requests by endpoint",
                about: "Requests a second.",
                unit: Unit::PerSecond,
                queries: &[(
                    r#"sum by (endpoint) (rate(muster_requests_total{namespace="$namespace"}[$__rate_interval]))"#,
                    "{{endpoint}}",
                )],
            },
            Panel {
                title: "Answers by code",
                about: "ok, and every error by its code.",
                unit: Unit::PerSecond,
                queries: &[(
                    r#"sum by (code) (rate(muster_requests_total{namespace="$namespace"}[$__rate_interval]))"#,
                    "{{code}}",
                )],
            },
            Panel {
                title: "Time to answer",
                about: "Half, 95 and 99 of a hundred requests are answered within this time.",
                unit: Unit::Seconds,
                queries: &[
                    (
                        r#"histogram_quantile(0.5, sum by (le) (rate(muster_request_duration_seconds_bucket{namespace="$namespace"}[$__rate_interval])))"#,
                        "50 %",
                    ),
                    (
                        r#"histogram_quantile(0.95, sum by (le) (rate(muster_request_duration_seconds_bucket{namespace="$namespace"}[$__rate_interval])))"#,
                        "95 %",
                    ),
                    (
                        r#"histogram_quantile(0.99, sum by (le) (rate(muster_request_duration_seconds_bucket{namespace="$namespace"}[$__rate_interval])))"#,
                        "99 %",
                    ),
                ],
            },
        ],
    },
    Row {
        title: "Limits",
        panels: &[
            Panel {
                title: "Rate limits",
                about: "Requests by whose limit decided, and how: section 8.3 of the runbook.",
                unit: Unit::PerSecond,
                queries: &[(
                    r#"sum by (scope, decision) (rate(muster_rate_limit_decisions_total{namespace="$namespace"}[$__rate_interval]))"#,
                    "{{scope}} {{decision}}",
                )],
            },
            Panel {
                title: "Limits taken to their bounds",
                about: "Requests that asked for more rows than the cap, or fewer than one.",
                unit: Unit::PerSecond,
                queries: &[(
                    r#"sum by (endpoint) (rate(muster_limits_clamped_total{namespace="$namespace"}[$__rate_interval]))"#,
                    "{{endpoint}}",
                )],
            },
            Panel {
                title: "Requests under way",
                about: "One beyond service.max_in_flight (256) is told unavailable.",
                unit: Unit::Number,
                queries: &[
                    (r#"sum(muster_requests_in_flight{namespace="$namespace"})"#, "requests"),
                    (
                        r#"sum by (scope) (muster_rate_limit_counters{namespace="$namespace"})"#,
                        "{{scope}} counters",
                    ),
                ],
            },
        ],
    },
    Row {
        title: "Events",
        panels: &[
            Panel {
                title: "Events by outcome",
                about: "Events a second by what became of them.",
                unit: Unit::PerSecond,
                queries: &[(
                    r#"sum by (outcome) (rate(muster_events_total{namespace="$namespace"}[$__rate_interval]))"#,
                    "{{outcome}}",
                )],
            },
            Panel {
                title: "Events that wait",
                about: "Not delivered yet; delivered and not acknowledged yet; dropped by the stream, which must be none; dead letters, which want repair.",
                unit: Unit::Number,
                queries: &[
                    (r#"max(muster_events_pending{namespace="$namespace"})"#, "pending"),
                    (r#"max(muster_events_unacknowledged{namespace="$namespace"})"#, "unacknowledged"),
                    (r#"max(muster_events_dropped{namespace="$namespace"})"#, "dropped"),
                    (r#"max(muster_dead_letters{namespace="$namespace"})"#, "dead letters"),
                ],
            },
            Panel {
                title: "Time of a transaction",
                about: "From a batch's begin to its commit.",
                unit: Unit::Seconds,
                queries: &[
                    (
                        r#"histogram_quantile(0.5, sum by (le) (rate(muster_batch_duration_seconds_bucket{namespace="$namespace"}[$__rate_interval])))"#,
                        "50 %",
                    ),
                    (
                        r#"histogram_quantile(0.99, sum by (le) (rate(muster_batch_duration_seconds_bucket{namespace="$namespace"}[$__rate_interval])))"#,
                        "99 %",
                    ),
                ],
            },
        ],
    },
    Row {
        title: "Database",
        panels: &[
            Panel {
                title: "Time of a query",
                about: "99 of a hundred take less, by query.",
                unit: Unit::Seconds,
                queries: &[(
                    r#"histogram_quantile(0.99, sum by (query, le) (rate(muster_query_duration_seconds_bucket{namespace="$namespace"}[$__rate_interval])))"#,
                    "{{query}}",
                )],
            },
            Panel {
                title: "Queries without an answer",
                about: "By what failed: no connection of the pool, the database, the query itself.",
                unit: Unit::PerSecond,
                queries: &[(
                    r#"sum by (failure) (rate(muster_query_failures_total{namespace="$namespace"}[$__rate_interval])) or vector(0)"#,
                    "{{failure}}",
                )],
            },
            Panel {
                title: "Database connections",
                about: "In use at max with callers that wait: section 7.3 of the runbook.",
                unit: Unit::Number,
                queries: &[
                    (r#"sum by (state) (muster_database_connections{namespace="$namespace"})"#, "{{state}}"),
                    (r#"sum(muster_database_waiting{namespace="$namespace"})"#, "waiting callers"),
                ],
            },
        ],
    },
    Row {
        title: "Connections and process",
        panels: &[
            Panel {
                title: "NATS",
                about: "Reconnections, refusals of the credentials, messages that were not read fast enough.",
                unit: Unit::Number,
                queries: &[
                    (r#"sum(muster_nats_reconnects_total{namespace="$namespace"})"#, "reconnects"),
                    (r#"sum(muster_nats_refusals_total{namespace="$namespace"})"#, "refusals"),
                    (r#"sum(muster_nats_slow_consumers_total{namespace="$namespace"})"#, "slow consumers"),
                ],
            },
            Panel {
                title: "Memory",
                about: "Near 512 MiB the container is ended: section 7.2 of the runbook.",
                unit: Unit::Bytes,
                queries: &[(
                    r#"process_resident_memory_bytes{job="muster-worker", namespace="$namespace"}"#,
                    "{{pod}}",
                )],
            },
            Panel {
                title: "File descriptors",
                about: "Open ones; the most that are allowed is process_max_fds.",
                unit: Unit::Number,
                queries: &[(r#"process_open_fds{job="muster-worker", namespace="$namespace"}"#, "{{pod}}")],
            },
        ],
    },
    Row {
        title: "Security",
        panels: &[
            Panel {
                title: "Days until a certificate ends",
                about: "Warned of from 14 days: the runbook on rotation.",
                unit: Unit::Days,
                queries: &[(
                    r#"min by (certificate) (muster_certificate_expiry_days{namespace="$namespace"})"#,
                    "{{certificate}}",
                )],
            },
            Panel {
                title: "Handshakes and rotations",
                about: "Servers' certificates by verdict; changes of certificates or secrets on disk.",
                unit: Unit::Number,
                queries: &[
                    (
                        r#"sum by (place, verdict) (muster_tls_handshakes_total{namespace="$namespace"})"#,
                        "{{place}} {{verdict}}",
                    ),
                    (
                        r#"sum by (outcome) (muster_rotations_total{namespace="$namespace"})"#,
                        "rotations {{outcome}}",
                    ),
                ],
            },
            Panel {
                title: "TLS policy and versions",
                about: "Pods by policy, servers by the version they are spoken to with.",
                unit: Unit::Number,
                queries: &[
                    (r#"count by (policy) (muster_tls_policy_info{namespace="$namespace"})"#, "{{policy}}"),
                    (
                        r#"sum by (place, version) (muster_tls_peers{namespace="$namespace"})"#,
                        "{{place}} {{version}}",
                    ),
                ],
            },
        ],
    },
];

/// Every panel.
pub(crate) fn panels() -> impl Iterator<Item = &'static Panel> {
    ROWS.iter().flat_map(|row| row.panels)
}

/// A query as Prometheus understands it, with Grafana's variables replaced.
pub(crate) fn query(text: &str, rate_interval: &str) -> String {
    text.replace("$namespace", "muster").replace("$__rate_interval", rate_interval)
}

/// The dashboard as Grafana imports it.
pub(crate) fn json() -> String {
    let mut panels = Vec::new();
    let mut y = 0;
    for row in ROWS {
        panels.push(json!({
            "id": panels.len() + 1, "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
        }));
        y += 1;
        let width = WIDTH / row.panels.len().max(1);
        for (column, panel) in row.panels.iter().enumerate() {
            let place = json!({"h": HEIGHT, "w": width, "x": column * width, "y": y});
            panels.push(panel.json(panels.len() + 1, &place));
        }
        y += HEIGHT;
    }
    let dashboard = json!({
        "title": "Muster worker",
        "uid": "muster-worker",
        "description": "Made by `cargo xtask observability --write` from xtask/src/dashboard.rs.",
        "tags": ["muster"],
        "schemaVersion": 39,
        "editable": false,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "annotations": {"list": [{
            "name": "Alerts", "enable": true, "iconColor": "red",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "expr": r#"ALERTS{alertname=~"Muster.*", alertstate="firing"}"#, "titleFormat": "{{alertname}}",
        }]},
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
            {
                "name": "namespace", "label": "Namespace", "type": "query",
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "query": "label_values(muster_build_info, namespace)", "refresh": 2,
            },
        ]},
        "panels": panels,
    });
    format!("{dashboard:#}\n")
}

impl Panel {
    fn json(&self, id: usize, place: &Value) -> Value {
        let source = json!({"type": "prometheus", "uid": "${datasource}"});
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip('A'..)
            .map(|((query, legend), letter)| {
                json!({
                    "refId": letter.to_string(), "expr": query, "legendFormat": legend, "range": true,
                    "datasource": source,
                })
            })
            .collect();
        json!({
            "id": id, "type": "timeseries", "title": self.title, "description": self.about, "gridPos": place,
            "datasource": source, "targets": targets,
            "fieldConfig": {"defaults": {"unit": self.unit.grafana(), "min": 0}, "overrides": []},
            "options": {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true},
                "tooltip": {"mode": "multi", "sort": "desc"},
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_have_titles_of_their_own_and_fill_their_rows() {
        let titles: std::collections::BTreeSet<&str> = panels().map(|panel| panel.title).collect();
        assert_eq!(titles.len(), panels().count());
        for row in ROWS {
            assert_eq!(WIDTH % row.panels.len(), 0, "{} does not fill its row", row.title);
        }
        let dashboard: Value = serde_json::from_str(&json()).unwrap();
        assert_eq!(dashboard["panels"].as_array().unwrap().len(), panels().count() + ROWS.len());
    }
}
