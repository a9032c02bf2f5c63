//! What the worker says of itself, `muster-worker describe`, and how such JSON is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use xtask::tool::output;

/// Asks the built worker.
pub(crate) fn describe(worker: &Path) -> Result<Value> {
    let described = output(Command::new(worker).arg("describe"))?;
    serde_json::from_str(&described).context("muster-worker describe prints no JSON")
}

/// The names that Prometheus has series under, each with its labels. A histogram has three.
pub(crate) fn series(description: &Value) -> BTreeMap<String, BTreeSet<&str>> {
    let series = list(description, "/metrics").iter().flat_map(|metric| {
        let is_histogram = text(metric, "/kind") == "histogram";
        let ends: &[&str] = if is_histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
        let labels: BTreeSet<&str> = list(metric, "/labels").iter().filter_map(Value::as_str).collect();
        ends.iter().map(move |end| (text(metric, "/name").to_owned() + end, labels.clone()))
    });
    series.collect()
}

/// A small description: a unit test has no worker that is sure to be built.
#[cfg(test)]
pub(crate) fn for_tests() -> Value {
    serde_json::from_str(include_str!("description/for_tests.json")).unwrap()
}

/// The elements at a JSON pointer; none where there is no list.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The text at a JSON pointer; an empty one where there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
