//! What a workflow must and must not do for its gates to gate: rules that no scanner of workflows has.
//!
//! Each workflow is what its file in `infra/expected/workflows` says: when it runs, its jobs with what they need, their
//! permissions, and every step in order. Names, time-outs and the commits of actions may change without it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

use super::sarif::Finding;
use crate::expected;

const WORKFLOWS: &str = ".github/workflows";
const EXPECTED: &str = "infra/expected/workflows";
const AS_EXPECTED: &str = "as-expected";

/// What makes a failing command pass. Spaces are one each.
const SWALLOWED: [&str; 6] = ["|| true", "||true", "|| :", "|| exit 0", "|| echo", "set +e"];

/// Checks every workflow of the repository.
pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let (actual, expected) = (root.join(WORKFLOWS), root.join(EXPECTED));
    let names = files(&actual)?;
    let mut findings = Vec::new();
    for name in names.union(&files(&expected)?) {
        let path = format!("{WORKFLOWS}/{name}");
        let say =
            |message: String| Finding { rule: AS_EXPECTED.to_owned(), path: path.clone(), line: 1, message };
        let (actual, expected) = (actual.join(name), expected.join(name));
        if !actual.is_file() {
            findings.push(say("the workflow is gone".to_owned()));
            continue;
        }
        let text = fs::read_to_string(&actual)?;
        findings.extend(of_workflow(&path, &text).with_context(|| format!("{path} is no workflow"))?);
        if !expected.is_file() {
            findings.push(say(format!("{EXPECTED}/{name} does not say what it must be")));
            continue;
        }
        let differences = unlike(&expected::read(&expected)?, &text)?;
        findings.extend(differences.into_iter().map(say));
    }
    Ok(findings)
}

/// The names of the YAML files of a directory.
fn files(directory: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".yml") || name.ends_with(".yaml") {
            names.insert(name);
        }
    }
    ensure!(!names.is_empty(), "{} holds no workflow", directory.display());
    Ok(names)
}

fn unlike(expected: &Value, workflow: &str) -> Result<Vec<String>> {
    let mut actual: Value = serde_norway::from_str(workflow)?;
    without(&mut actual, &["name"]);
    for job in actual.get_mut("jobs").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        without(job, &["name", "timeout-minutes"]);
        for step in job.get_mut("steps").and_then(Value::as_array_mut).into_iter().flatten() {
            without(step, &["name"]);
            if let Some(Value::String(action)) = step.get_mut("uses")
                && let Some((name, _)) = action.split_once('@')
            {
                *action = name.to_owned();
            }
        }
    }
    Ok(expected::differences(expected, &actual))
}

fn without(value: &mut Value, keys: &[&str]) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|key, _| !keys.contains(&key.as_str()));
    }
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
    use super::*;

    #[test]
    fn every_planted_fault_is_found() {
        let file = crate::cargo::root().join(".github/workflows/container-security.yml");
        let text = fs::read_to_string(file).unwrap();
        let broken = |text: &str| -> BTreeSet<String> {
            of_workflow("w", text).unwrap().into_iter().map(|finding| finding.rule).collect()
        };
        assert_eq!(broken(&text), BTreeSet::new());
        let step = "      - run: cargo xtask scan --only dockerfile\n";
        let planted = |suffix: &str| format!("      - run: cargo xtask scan --only dockerfile{suffix}\n");
        let faults = [
            (step, planted("\n        continue-on-error: true"), "a-failure-fails"),
            ("    timeout-minutes: 90\n", "    continue-on-error: true\n".to_owned(), "a-failure-fails"),
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
            ("    timeout-minutes: 90\n", String::new(), "a-job-ends"),
        ];
        for (right, wrong, rule) in faults {
            assert!(text.contains(right), "{right} is no longer in the workflow");
            let found = broken(&text.replace(right, &wrong));
            assert!(found.contains(rule), "{right} -> {wrong}: found {found:?}, not {rule}");
        }
    }

    /// Each fault takes away or weakens what must be there, and is found because the workflow is no longer as expected.
    #[test]
    fn what_must_be_there_and_is_not_is_found() {
        let root = crate::cargo::root();
        let image_scan = "      - run: cargo xtask scan --only manifests,repository-secrets,repository-vulnerabilities,\
                          image-secrets,image-vulnerabilities\n";
        let faults = [
            ("ci.yml", "      - run: cargo xtask ci\n", "      - run: cargo xtask test\n"),
            ("ci.yml", "  push:\n    branches: [main]\n", ""),
            ("ci.yml", "github.event_name == 'pull_request'", "true"),
            ("container-security.yml", image_scan, ""),
            ("container-security.yml", ",image-vulnerabilities\n", "\n"),
            (
                "container-security.yml",
                "scan --only dockerfile\n",
                "scan --only dockerfile --exclude dockerfile\n",
            ),
            ("container-security.yml", "  schedule:\n    - cron: \"0 0 * * 0\"\n", ""),
            ("container-security.yml", "      - .hadolint.yaml\n", ""),
            ("container-security.yml", "    needs: build\n", ""),
            ("container-security.yml", "  hadolint:\n", "  hadolint:\n    if: false\n"),
            (
                "container-security.yml",
                image_scan,
                "      - run: cargo xtask scan\n        shell: bash {0}\n",
            ),
            ("release.yml", "    needs: [build, start, scan]\n", "    needs: build\n"),
            ("release.yml", "      - run: cargo xtask ci\n", ""),
            ("release.yml", "      - run: cargo xtask image --archive target/image/muster-worker.tar\n", ""),
            ("release.yml", "          ./cosign verify", "          : ./cosign verify"),
            ("release.yml", "run: gh attestation verify", "run: echo gh attestation verify"),
            ("release.yml", "create --prefer-index=false", "create"),
            ("release.yml", "git merge-base --is-ancestor", "git log"),
            ("release.yml", "        run: test \"$(docker buildx", "        run: test -n \"$(docker buildx"),
        ];
        for (file, right, wrong) in faults {
            let text = fs::read_to_string(root.join(WORKFLOWS).join(file)).unwrap();
            let expected = expected::read(&root.join(EXPECTED).join(file)).unwrap();
            assert_eq!(unlike(&expected, &text).unwrap(), [""; 0], "{file}");
            assert!(text.contains(right), "{right} is no longer in {file}");
            let found = unlike(&expected, &text.replacen(right, wrong, 1)).unwrap();
            assert!(!found.is_empty(), "{file}: {right} -> {wrong} is not found");
        }
    }

    #[test]
    fn a_workflow_that_is_removed_or_added_is_found() {
        let root = tempfile::tempdir().unwrap();
        for directory in [WORKFLOWS, EXPECTED] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let from = crate::cargo::root();
        for file in ["ci.yml", "release.yml"] {
            for directory in [WORKFLOWS, EXPECTED] {
                fs::copy(from.join(directory).join(file), root.path().join(directory).join(file)).unwrap();
            }
        }
        assert_eq!(check(root.path()).unwrap(), []);
        fs::rename(root.path().join(WORKFLOWS).join("ci.yml"), root.path().join(WORKFLOWS).join("other.yml"))
            .unwrap();
        let found = check(root.path()).unwrap();
        let messages: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
        let unknown = "infra/expected/workflows/other.yml does not say what it must be";
        assert_eq!(messages, ["the workflow is gone", unknown]);
    }

    #[test]
    fn what_is_no_workflow_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(check(root.path()).is_err());
        for directory in [WORKFLOWS, EXPECTED] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
            fs::write(root.path().join(directory).join("w.yml"), "name: w\n").unwrap();
        }
        assert!(check(root.path()).is_err());
    }
}
