//! Scans what ships, by `scan/scans.sh`: a scanner's own exit code decides, and its report in SARIF is kept.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};
use xtask::tool::{self, WrongDigest};

use crate::cargo;
use crate::description::{list, text};
use crate::verdict::{self, Verdict, step};

/// Every scan, and the tool that makes it.
const SCANS: [(&str, &str); 13] = [
    ("exceptions", "xtask"),
    ("gates", "diff"),
    ("dependencies", "cargo-deny"),
    ("advisories", "cargo-deny"),
    ("dockerfile", "hadolint"),
    ("workflows", "zizmor"),
    ("workflow-syntax", "actionlint"),
    ("manifests", "trivy"),
    ("repository-secrets", "trivy"),
    ("repository-vulnerabilities", "trivy"),
    ("image-secrets", "trivy"),
    ("image-vulnerabilities", "trivy"),
    ("image-efficiency", "dive"),
];
const REPORTS: &str = "target/scan";
const TRIVY: &str = ".trivyignore.yaml";
const DENY: &str = "deny.toml";
const VEX: &str = "infra/vex/muster.openvex.json";
const NOT_RUN: i32 = 77;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run these scans and no other.
    #[arg(long, value_delimiter = ',', value_parser = SCANS.map(|(scan, _)| scan))]
    only: Vec<String>,
    /// Also list what is inside the image, in CycloneDX, in this file.
    #[arg(long)]
    sbom: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Verdict> {
    let (root, mut rows) = (cargo::root(), Vec::new());
    for (scan, _) in SCANS {
        if arguments.only.is_empty() || arguments.only.iter().any(|it| it == scan) {
            rows.push(step(scan, async { one(scan, &root) }).await);
        }
    }
    let verdict = verdict::together(&rows, ["scan", "time"]);
    if let Some(file) = &arguments.sbom {
        let mut sbom = script(&tool::find("trivy")?.0, &root)?;
        let listed = sbom.arg("sbom").arg(root.join(file)).status()?.success();
        ensure!(listed, "the image's content could not be listed");
    }
    Ok(verdict)
}

/// Runs one scan of the repository at `root`, and says what makes it.
pub(crate) fn one(scan: &str, root: &Path) -> Result<Verdict> {
    let (_, name) = SCANS.into_iter().find(|(name, _)| *name == scan).context("there is no such scan")?;
    let tool = match name {
        "xtask" => {
            let problems = exceptions(root, OffsetDateTime::now_utc().date())?;
            problems.iter().for_each(|problem| println!("{problem}"));
            return Ok(Verdict::of(problems.is_empty()));
        }
        "diff" => Ok((which::which(name)?, "(PATH)".to_owned())),
        _ => tool::find(name),
    };
    // A tool that cannot be fetched is one thing, a file that is not the pinned one another.
    let (program, origin) = match tool {
        Err(error) if !error.is::<WrongDigest>() => {
            println!("NOT RUN: {error:#}");
            return Ok(Verdict::NotRun);
        }
        found => found?,
    };
    println!("by {name} {origin}");
    let report = root.join(REPORTS).join(format!("{scan}.sarif"));
    fs::create_dir_all(root.join(REPORTS))?;
    // The report of an earlier run is not this one's.
    fs::remove_file(&report).ok();
    let status = script(&program, root)?.arg(scan).env("REPORT", &report).status()?;
    if status.code() == Some(NOT_RUN) {
        return Ok(Verdict::NotRun);
    }
    name_report(&report, scan).with_context(|| format!("{} is no report", report.display()))?;
    Ok(Verdict::of(status.success()))
}

/// `scans.sh`, with the tool first on its PATH.
fn script(program: &Path, root: &Path) -> Result<Command> {
    let mut path = program.parent().context("the tool is in no directory")?.as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.arg(cargo::root().join("xtask/src/scan/scans.sh")).current_dir(root).stdin(Stdio::null());
    command.env("PATH", path).env("TRIVY_CACHE", tool::cache()?.join("trivy"));
    Ok(command)
}

/// Names the scan in its report: GitHub refuses two of one tool and name. What is no report would pass for an empty one.
fn name_report(report: &Path, scan: &str) -> Result<()> {
    let mut sarif: Value = serde_json::from_slice(&fs::read(report)?)?;
    let run = sarif.pointer_mut("/runs/0").and_then(Value::as_object_mut).context("it has no run")?;
    ensure!(run.get("results").is_some_and(Value::is_array), "it has no results");
    run.insert("automationDetails".to_owned(), json!({"id": format!("cargo-xtask-scan/{scan}/")}));
    fs::write(report, sarif.to_string()).context("it cannot be written")
}

/// The exceptions without a reason or a near day to come on which they expire, and those of misconfigurations in any file.
/// Trivy's file has a field for each; cargo-deny's reason ends with the day. `scans.sh` lets no other scanner make exceptions.
fn exceptions(root: &Path, today: Date) -> Result<Vec<String>> {
    let read = |file| fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"));
    let trivy: Value = serde_norway::from_str(&read(TRIVY)?).context(TRIVY)?;
    let deny: Value = toml::from_str(&read(DENY)?).context(DENY)?;
    let vex: Value = serde_json::from_str(&read(VEX)?).context(VEX)?;
    let wide = list(&trivy, "/misconfigurations").iter().filter(|it| list(it, "/paths").is_empty());
    let wide = wide.map(|it| format!("{TRIVY}: {} names no paths", text(it, "/id")));
    let mut problems: Vec<String> = wide.collect();
    let mut check = |file: &str, id: &str, reason: &str, expires: &str| {
        let expires = Date::parse(expires, format_description!("[year]-[month]-[day]")).ok();
        if reason.trim().is_empty()
            || expires.is_none_or(|day| day <= today || day > today + Duration::days(400))
        {
            problems.push(format!("{file}: {id} has no reason, or no day to come soon on which it expires"));
        }
    };
    for it in trivy.as_object().into_iter().flat_map(|kinds| kinds.values()).flat_map(|kind| list(kind, "")) {
        check(TRIVY, text(it, "/id"), text(it, "/statement"), text(it, "/expired_at"));
    }
    let advisories = list(&deny, "/advisories/ignore");
    for it in advisories {
        let (reason, expires) = text(it, "/reason").rsplit_once("; expires ").unwrap_or_default();
        check(DENY, it.as_str().unwrap_or(text(it, "/id")), reason, expires);
    }
    // Trivy leaves out what VEX says does not affect Muster.
    let unaffected = list(&vex, "/statements").iter().map(|it| text(it, "/vulnerability/name"));
    let forever = unaffected.filter(|id| !advisories.iter().any(|advisory| text(advisory, "/id") == *id));
    problems.extend(forever.map(|id| format!("{VEX}: {id} is not in {DENY}, where it expires")));
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What makes a copy of the repository, with the functions that make an image.
    const COPY: &str = concat!(include_str!("image/plant.sh"), include_str!("scan/copy.sh"));

    /// Plants a fault in a copy of the repository, and answers how the scan ends and its report; `None` when it cannot be run here.
    fn scanned(scan: &str, fault: &str) -> Option<(Verdict, String)> {
        let root = tempfile::tempdir().unwrap();
        let mut plant = Command::new("bash");
        plant.arg("-c").arg(format!("{COPY}{fault}")).arg(cargo::root()).arg(scan).current_dir(&root);
        assert!(plant.status().unwrap().success(), "{fault}");
        let verdict = one(scan, root.path()).unwrap();
        assert_eq!(verdict.enforced(), verdict, "{scan} was not run");
        let report = root.path().join(format!("{REPORTS}/{scan}.sarif"));
        let report = fs::read_to_string(report).unwrap_or_default();
        (verdict != Verdict::NotRun).then_some((verdict, report))
    }

    #[test]
    fn every_planted_fault_fails_its_scan() {
        type Faults = BTreeMap<String, BTreeMap<String, String>>;
        for (scan, faults) in toml::from_str::<Faults>(include_str!("scan/planted.toml")).unwrap() {
            let Some((verdict, report)) = scanned(&scan, "") else { continue };
            assert_eq!(verdict, Verdict::Passed, "{scan} without a fault: {report}");
            for (fault, finds) in faults {
                let (verdict, report) = scanned(&scan, &fault).unwrap();
                let is_found = verdict == Verdict::Failed && report.contains(&finds);
                assert!(is_found, "{scan}: {fault}: {verdict:?}, {report}");
            }
        }
    }

    #[test]
    fn a_vulnerability_fails_the_scan_when_it_has_a_fix_and_no_scan_passes_without_a_database() {
        let root = tempfile::tempdir().unwrap();
        let Ok((trivy, _)) = tool::find("trivy") else {
            return assert!(Verdict::NotRun.enforced() == Verdict::NotRun, "no trivy");
        };
        fs::copy(cargo::root().join(".trivyignore.yaml"), root.path().join(".trivyignore.yaml")).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = script(&trivy, root.path()).unwrap();
            command.env("REPORT", root.path().join("sarif")).env("TRIVY_DB_REPOSITORY", "localhost:1/none");
            command.args(arguments).status().unwrap().code()
        };
        for (fixed, code) in [("1.11.1", 1), ("", 0)] {
            let planted = include_str!("scan/vulnerability.json").replace("FIXED", fixed);
            fs::write(root.path().join("findings.json"), planted).unwrap();
            assert_eq!(run(&["gate", &root.path().join("findings.json").display().to_string()]), Some(code));
            assert!(fs::read_to_string(root.path().join("sarif")).unwrap().contains("CVE-2026-25541"));
        }
        assert_eq!(run(&["repository-vulnerabilities"]), Some(NOT_RUN));
    }
}
