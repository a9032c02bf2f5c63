//! What a scanner found, read from its report in SARIF.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One thing that a scanner found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The scanner's name of the rule, such as `DL3002` or `CVE-2026-12345`.
    pub(crate) rule: String,
    /// The file.
    pub(crate) path: String,
    pub(crate) line: u64,
    pub(crate) message: String,
}

impl Finding {
    /// Whether it is a vulnerability for which no version is named that is free of it.
    pub(super) fn has_no_fix(&self) -> bool {
        self.message.lines().any(|line| line.trim_end() == "Fixed Version:")
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}:{}: {}", self.rule, self.path, self.line, self.message.replace('\n', "; "))
    }
}

/// Reads a report; a report that is none is an error, since it would pass for one without findings.
pub(super) fn read(report: &Path) -> Result<Vec<Finding>> {
    let text = fs::read(report).with_context(|| format!("cannot read {}", report.display()))?;
    let value: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is no SARIF", report.display()))?;
    parse(&value).with_context(|| format!("{} is no SARIF", report.display()))
}

fn parse(report: &Value) -> Result<Vec<Finding>> {
    let runs = report.get("runs").and_then(Value::as_array).context("it has no runs")?;
    let mut findings = Vec::new();
    for run in runs {
        // Null says that the scanner could not scan.
        let results = run.get("results").and_then(Value::as_array).context("a run has no results")?;
        for result in results {
            let text = |pointer: &str| result.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
            let place = "/locations/0/physicalLocation";
            findings.push(Finding {
                rule: text("/ruleId").to_owned(),
                path: text(&format!("{place}/artifactLocation/uri")).to_owned(),
                line: result
                    .pointer(&format!("{place}/region/startLine"))
                    .and_then(Value::as_u64)
                    .unwrap_or(0),
                message: text("/message/text").to_owned(),
            });
        }
    }
    Ok(findings)
}

/// Names the scan in its report. GitHub takes one run of each tool and name, and Trivy makes several of the reports.
pub(super) fn name(report: &Path, scan: &str) -> Result<()> {
    let text = fs::read_to_string(report).with_context(|| format!("cannot read {}", report.display()))?;
    let mut value: Value = serde_json::from_str(&text)?;
    let runs = value.get_mut("runs").and_then(Value::as_array_mut).context("it has no runs")?;
    for run in runs.iter_mut().filter_map(Value::as_object_mut) {
        run.insert("automationDetails".to_owned(), json!({"id": format!("cargo-xtask-scan/{scan}/")}));
    }
    fs::write(report, value.to_string()).with_context(|| format!("cannot write {}", report.display()))
}

/// Writes the report of a scanner that knows no SARIF.
pub(super) fn write(report: &Path, tool: &str, findings: &[Finding]) -> Result<()> {
    let results: Vec<Value> = findings
        .iter()
        .map(|it| {
            json!({
                "ruleId": it.rule,
                "level": "error",
                "message": {"text": it.message},
                "locations": [{"physicalLocation": {
                    "artifactLocation": {"uri": it.path}, "region": {"startLine": it.line},
                }}],
            })
        })
        .collect();
    let report_value = json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": {"name": tool}}, "results": results}],
    });
    fs::write(report, report_value.to_string()).with_context(|| format!("cannot write {}", report.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_one_tool_differ_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("r.sarif");
        write(&report, "trivy", &[]).unwrap();
        name(&report, "image-secrets").unwrap();
        let value: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
        let id = value.pointer("/runs/0/automationDetails/id").and_then(Value::as_str);
        assert_eq!(id, Some("cargo-xtask-scan/image-secrets/"));
        assert!(read(&report).unwrap().is_empty());
    }

    #[test]
    fn a_vulnerable_crate_is_a_finding_and_what_is_no_report_an_error() {
        // The form in which Trivy reports a crate of Cargo.lock.
        let report = json!({"version": "2.1.0", "runs": [{"results": [{
            "ruleId": "CVE-2026-25541", "level": "error",
            "message": {"text": "Package: bytes\nInstalled Version: 1.11.0\nSeverity: HIGH\nFixed Version: 1.11.1"},
            "locations": [{"physicalLocation": {
                "artifactLocation": {"uri": "Cargo.lock"}, "region": {"startLine": 7}}}],
        }]}]});
        let findings = parse(&report).unwrap();
        assert_eq!(findings.len(), 1);
        let shown = findings[0].to_string();
        assert!(shown.starts_with("CVE-2026-25541 in Cargo.lock:7: Package: bytes; "), "{shown}");
        assert!(parse(&json!({})).is_err());
        assert!(parse(&json!({"runs": [{"results": null}]})).is_err());
    }
}
