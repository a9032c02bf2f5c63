//! What a workflow must not do for its gates to gate: rules that no scanner of workflows has.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::sarif::Finding;

/// What makes a failing command pass. Spaces are one each.
const SWALLOWED: [&str; 6] = ["|| true", "||true", "|| :", "|| exit 0", "|| echo", "set +e"];

/// Checks every workflow in a directory.
pub(super) fn check(directory: &Path) -> Result<Vec<Finding>> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yml" || extension == "yaml"));
    files.sort();
    ensure!(!files.is_empty(), "{} holds no workflow", directory.display());
    let mut findings = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let path = format!(".github/workflows/{name}");
        findings.extend(of_workflow(&path, &text).with_context(|| format!("{path} is no workflow"))?);
    }
    Ok(findings)
}

fn of_workflow(path: &str, text: &str) -> Result<Vec<Finding>> {
    let workflow: Value = serde_norway::from_str(text)?;
    let mut findings = Vec::new();
    let mut say = |rule: &str, near: &str, message: String| {
        let line = text.lines().position(|line| !near.is_empty() && line.contains(near)).unwrap_or(0);
        let line = u64::try_from(line).unwrap_or(0) + 1;
        findings.push(Finding { rule: rule.to_owned(), path: path.to_owned(), line, message });
    };
    if workflow.get("permissions").and_then(Value::as_object).is_none_or(|it| !it.is_empty()) {
        say("no-permission-at-the-top", "permissions:", "the workflow must say permissions: {}".to_owned());
    }
    if workflow.get("concurrency").is_none() {
        say("concurrency", "", "the workflow says nothing of runs at the same time".to_owned());
    }
    let jobs = workflow.get("jobs").and_then(Value::as_object).context("it has no jobs")?;
    for (name, job) in jobs {
        if job.get("permissions").and_then(Value::as_object).is_none() {
            say("permissions-of-the-job", name, format!("{name} does not name its permissions"));
        }
        if job.get("timeout-minutes").is_none() {
            say("a-job-ends", name, format!("{name} has no timeout-minutes"));
        }
        let steps = job.get("steps").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for part in std::iter::once(job).chain(steps) {
            if part.get("continue-on-error").is_some_and(|it| *it != Value::Bool(false)) {
                say("a-failure-fails", "continue-on-error", format!("{name} goes on after an error"));
            }
        }
        for step in steps {
            let script = step.get("run").and_then(Value::as_str).unwrap_or_default();
            for line in script.lines() {
                let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
                if SWALLOWED.iter().any(|swallowed| words.contains(swallowed)) {
                    say("a-failure-fails", line.trim(), format!("{name} lets a failure pass: {words}"));
                }
            }
            let action = step.get("uses").and_then(Value::as_str).unwrap_or_default();
            let commit = action.rsplit_once('@').map_or("", |(_, commit)| commit);
            let fixed = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !action.is_empty() && !action.starts_with("./") && !fixed {
                say("an-action-by-commit", action, format!("{action} moves: name its commit"));
            }
        }
        if steps.iter().any(scans) {
            let whole = job.to_string();
            let writes = job.get("permissions").is_none_or(|it| it.to_string().contains("write"));
            let token = steps.iter().any(|step| scans(step) && step.to_string().contains("github.token"));
            if whole.contains("secrets.") || writes || token {
                let what = format!("{name} runs a scanner beside a secret or a token that may write");
                say("no-secret-beside-a-scanner", name, what);
            }
        }
    }
    Ok(findings)
}

fn scans(step: &Value) -> bool {
    step.get("run").and_then(Value::as_str).is_some_and(|run| run.contains("cargo xtask scan"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_planted_fault_is_found() {
        let file = crate::cargo::root().join(".github/workflows/container-security.yml");
        let text = fs::read_to_string(file).unwrap();
        let broken = |text: &str| -> BTreeSet<String> {
            of_workflow("w", text).unwrap().into_iter().map(|finding| finding.rule).collect()
        };
        assert_eq!(broken(&text), BTreeSet::new());
        let step = "      - run: cargo xtask scan\n";
        let planted = |suffix: &str| format!("      - run: cargo xtask scan{suffix}\n");
        let faults = [
            (step, planted("\n        continue-on-error: true"), "a-failure-fails"),
            ("    timeout-minutes: 60\n", "    continue-on-error: true\n".to_owned(), "a-failure-fails"),
            (step, planted(" || true"), "a-failure-fails"),
            (step, "      - run: |\n          cargo xtask scan  ||  :\n".to_owned(), "a-failure-fails"),
            (
                step,
                "      - run: |\n          set +e\n          cargo xtask scan\n".to_owned(),
                "a-failure-fails",
            ),
            ("@3d3c42e5aac5ba805825da76410c181273ba90b1", "@v7.0.1".to_owned(), "an-action-by-commit"),
            ("permissions: {}", "permissions: read-all".to_owned(), "no-permission-at-the-top"),
            ("concurrency:", "env:".to_owned(), "concurrency"),
            (
                "      contents: read # to read the sources\n",
                "      contents: write\n".to_owned(),
                "no-secret-beside-a-scanner",
            ),
            (
                step,
                planted("\n        env:\n          TOKEN: ${{ secrets.TOKEN }}"),
                "no-secret-beside-a-scanner",
            ),
            (
                step,
                planted("\n        env:\n          TOKEN: ${{ github.token }}"),
                "no-secret-beside-a-scanner",
            ),
            ("    timeout-minutes: 60\n", String::new(), "a-job-ends"),
        ];
        for (right, wrong, rule) in faults {
            assert!(text.contains(right), "{right} is no longer in the workflow");
            let found = broken(&text.replace(right, &wrong));
            assert!(found.contains(rule), "{right} -> {wrong}: found {found:?}, not {rule}");
        }
    }

    #[test]
    fn what_is_no_workflow_is_an_error() {
        let empty = tempfile::tempdir().unwrap();
        assert!(check(empty.path()).is_err());
        fs::write(empty.path().join("w.yml"), "name: w\n").unwrap();
        assert!(check(empty.path()).is_err());
    }
}
