//! What there is: for documents, alerts and dashboard to be held to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::CommandFactory;
use muster_domain::{MaxClockSkew, TimeBounds};
use muster_messaging::endpoint::Endpoint;
use muster_messaging::events::envelope::{self, DEFAULT_MAX_BYTES, Decoded, EventBounds};
use serde::Deserialize;
use time::OffsetDateTime;

use crate::{manifests, observability};

/// What Prometheus adds to a histogram's name.
const OF_HISTOGRAM: [&str; 3] = ["_bucket", "_sum", "_count"];

/// What the sources and the built programs say of themselves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(super) root: PathBuf,
    metrics: BTreeMap<String, Metric>,
    pub(super) alerts: BTreeSet<String>,
    /// Such as `MUSTER__NATS__URLS`.
    pub(super) variables: BTreeSet<String>,
    /// Programs' commands, each with its options: `muster-worker`, `muster-worker migrate`, `cargo xtask demo`.
    pub(super) commands: BTreeMap<String, BTreeSet<String>>,
    /// The names of all functions, tests among them, and fields.
    pub(super) functions: BTreeSet<String>,
}

/// As `muster-worker metrics --json` lists it.
#[derive(Debug, Clone, Deserialize)]
struct Metric {
    name: String,
    kind: String,
    labels: BTreeSet<String>,
}

impl Facts {
    /// Asks the built worker and reads the sources.
    pub(crate) fn read(root: &Path, worker: &Path) -> Result<Self> {
        let listed = said(worker, &["metrics", "--json"])?;
        let metrics: Vec<Metric> =
            serde_json::from_str(&listed).context("muster-worker metrics --json is not as expected")?;
        let mut commands = BTreeMap::new();
        options_of(worker, "muster-worker", &[], &mut commands)?;
        options_of_xtask(&crate::Arguments::command(), "cargo xtask", &mut commands);
        Ok(Self {
            root: root.to_owned(),
            metrics: metrics.into_iter().map(|metric| (metric.name.clone(), metric)).collect(),
            alerts: observability::alerts(root)?,
            variables: manifests::variables(root)?,
            commands,
            functions: functions(root)?,
        })
    }

    /// Whether Prometheus gets such a metric from the worker.
    pub(crate) fn knows_metric(&self, name: &str) -> bool {
        self.metric(name).is_some()
    }

    /// Whether that metric has that label.
    pub(crate) fn knows_label(&self, metric: &str, label: &str) -> bool {
        self.metric(metric).is_some_and(|metric| metric.labels.contains(label))
    }

    fn metric(&self, name: &str) -> Option<&Metric> {
        let plain = self.metrics.get(name).filter(|metric| metric.kind != "histogram");
        plain.or_else(|| {
            let base = OF_HISTOGRAM.iter().find_map(|end| name.strip_suffix(end));
            self.metrics.get(base.unwrap_or(name)).filter(|metric| metric.kind == "histogram")
        })
    }

    /// Whether there is such a configuration key, such as `nats.urls`.
    pub(super) fn knows_key(&self, key: &str) -> bool {
        self.variables.contains(&format!("MUSTER__{}", key.to_uppercase().replace('.', "__")))
    }

    /// Whether the configuration has such a section.
    pub(super) fn knows_section(&self, section: &str) -> bool {
        let start = format!("MUSTER__{}__", section.to_uppercase());
        self.variables.iter().any(|variable| variable.starts_with(&start))
    }
}

/// Whether there is such an endpoint, or one that a subject's wildcards stand for.
pub(super) fn knows_endpoint(name: &str) -> bool {
    Endpoint::ALL.iter().any(|endpoint| {
        let (mut wanted, mut parts) = (name.split('.'), endpoint.name().split('.'));
        loop {
            match (wanted.next(), parts.next()) {
                (Some(">"), _) | (None, None) => return true,
                (Some("*"), Some(_)) => {}
                (Some(wanted), Some(part)) if wanted == part => {}
                _ => return false,
            }
        }
    })
}

/// Whether there is such a type of event.
pub(super) fn knows_event(event_type: &str) -> bool {
    let body = format!(
        "{{\"event_id\":\"6f1c2a0e-8f1d-4f7e-9d55-1a2b3c4d5e6f\",\"event_type\":\"{event_type}\",\"timestamp\":1}}"
    );
    let times = TimeBounds::at(OffsetDateTime::now_utc(), MaxClockSkew::default());
    let bounds = EventBounds { max_bytes: DEFAULT_MAX_BYTES, times };
    let subject = format!("events.{event_type}");
    !matches!(envelope::decode(&subject, body.as_bytes(), bounds), Ok(Decoded::Unknown { .. }))
}

/// The names of the functions and fields in all Rust sources.
fn functions(root: &Path) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.join("crates"), root.join("xtask")];
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let names = text.split("fn ").skip(1).map(|rest| {
                    rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>()
                });
                found.extend(names);
                // A field is named as a function is.
                let fields = text.split(':').map(|before| {
                    let letters =
                        before.bytes().rev().take_while(|c| c.is_ascii_alphanumeric() || *c == b'_');
                    before.get(before.len() - letters.count()..).unwrap_or_default().to_owned()
                });
                found.extend(fields);
            }
        }
    }
    Ok(found)
}

fn said(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "muster-worker {} fails: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("a program answers what is no text")
}

/// Reads the commands and options off a program's own help, and goes down into each command.
fn options_of(
    program: &Path,
    name: &str,
    path: &[&str],
    commands: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<()> {
    let help = said(program, &[path, &["--help"]].concat())?;
    let words = |line: &str| -> BTreeSet<String> {
        line.split([' ', ',', '=', '<', '['])
            .filter(|word| word.starts_with("--"))
            .map(str::to_owned)
            .collect()
    };
    let options = help.lines().filter(|line| line.trim_start().starts_with('-')).flat_map(words);
    commands.insert(name.to_owned(), options.collect());
    let listed = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
    for line in listed.lines().take_while(|line| line.starts_with("  ")) {
        // A description that goes on stands further in.
        let Some(command) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
        let command = command.split_whitespace().next().unwrap_or_default();
        if command != "help" {
            let deeper = [path, &[command]].concat();
            options_of(program, &format!("{name} {command}"), &deeper, commands)?;
        }
    }
    Ok(())
}

fn options_of_xtask(command: &clap::Command, name: &str, commands: &mut BTreeMap<String, BTreeSet<String>>) {
    let options = command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?)));
    commands.insert(name.to_owned(), options.chain(["--help".to_owned()]).collect());
    for deeper in command.get_subcommands() {
        options_of_xtask(deeper, &format!("{name} {}", deeper.get_name()), commands);
    }
}

#[cfg(test)]
impl Facts {
    /// The worker's part by hand, since a test has no worker that is sure to be built; the rest from the sources.
    pub(crate) fn of_this_test(root: &Path) -> Self {
        let metric = |name: &str, kind: &str, labels: &[&str]| {
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            (name.to_owned(), Metric { name: name.to_owned(), kind: kind.to_owned(), labels })
        };
        let mut commands = BTreeMap::new();
        for (name, options) in [
            ("muster-worker", &["--config", "--help"][..]),
            ("muster-worker check", &["--help"]),
            ("muster-worker migrate", &[]),
        ] {
            commands.insert(name.to_owned(), options.iter().map(|&option| option.to_owned()).collect());
        }
        options_of_xtask(&crate::Arguments::command(), "cargo xtask", &mut commands);
        Self {
            root: root.to_owned(),
            metrics: BTreeMap::from([
                metric("muster_ready", "gauge", &["part"]),
                metric("muster_requests_total", "counter", &["endpoint", "code"]),
                metric("muster_request_duration_seconds", "histogram", &["endpoint"]),
            ]),
            alerts: observability::alerts(root).unwrap(),
            variables: manifests::variables(root).unwrap(),
            commands,
            functions: functions(root).unwrap(),
        }
    }
}
