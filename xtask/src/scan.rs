//! Scans what ships, by `scan/scans.sh`: a scanner's own exit code decides, and its report in SARIF is kept.

mod exceptions;
#[cfg(test)]
mod planted;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use time::OffsetDateTime;
use xtask::tool::{self, Tool, WrongDigest};

use crate::cargo;
use crate::verdict::{self, Verdict, step};

/// Every scan, and the tool that makes it.
const SCANS: [(&str, &str); 11] = [
    ("exceptions", "xtask"),
    ("workflow-gates", "diff"),
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
/// Where the reports go.
const REPORTS: &str = "target/scan";
/// The exit code of a scan that could not be run.
const NOT_RUN: i32 = 77;

/// What `cargo xtask scan` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run these scans and no other.
    #[arg(long, value_delimiter = ',', value_parser = SCANS.map(|(scan, _)| scan))]
    only: Vec<String>,
    /// Leave these scans out: what is left out by name does not count as not run.
    #[arg(long, value_delimiter = ',', value_parser = SCANS.map(|(scan, _)| scan))]
    exclude: Vec<String>,
    /// Also list what is inside the image, in CycloneDX, in this file.
    #[arg(long)]
    sbom: Option<PathBuf>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Verdict> {
    let (root, mut rows) = (cargo::root(), Vec::new());
    for (scan, _) in SCANS {
        let named = |scans: &[String]| scans.iter().any(|it| it == scan);
        if !named(&arguments.exclude) && (arguments.only.is_empty() || named(&arguments.only)) {
            rows.push(step(scan, async { one(scan, &root) }).await);
        }
    }
    let verdict = verdict::together(&rows, ["scan", "time"]);
    if let Some(file) = &arguments.sbom {
        let mut sbom = script(&tool::find("trivy")?, &root)?;
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
            let problems = exceptions::problems(root, OffsetDateTime::now_utc().date())?;
            problems.iter().for_each(|problem| println!("{problem}"));
            return Ok(Verdict::of(problems.is_empty()));
        }
        "diff" => Tool { program: which::which(name)?, origin: "(PATH)".to_owned() },
        _ => match tool::find(name) {
            Ok(tool) => tool,
            // A tool that cannot be fetched is one thing, a file that is not the pinned one another.
            Err(error) if error.is::<WrongDigest>() => return Err(error),
            Err(error) => {
                println!("NOT RUN: {error:#}");
                return Ok(Verdict::NotRun);
            }
        },
    };
    println!("by {name} {}", tool.origin);
    let report = root.join(REPORTS).join(format!("{scan}.sarif"));
    fs::create_dir_all(root.join(REPORTS))?;
    // The report of an earlier run is not this one's.
    fs::remove_file(&report).ok();
    let output = script(&tool, root)?.arg(scan).env("REPORT", &report).output()?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(NOT_RUN) {
        return Ok(Verdict::NotRun);
    }
    name_report(&report, scan).with_context(|| format!("{} is no report", report.display()))?;
    Ok(Verdict::of(output.status.success()))
}

/// `scans.sh`, with the tool first on its PATH.
fn script(tool: &Tool, root: &Path) -> Result<Command> {
    let mut path = tool.program.parent().context("the tool is in no directory")?.as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.arg(cargo::root().join("xtask/src/scan/scans.sh")).current_dir(root).stdin(Stdio::null());
    command.env("PATH", path).env("TRIVY_CACHE", tool::cache()?.join("trivy"));
    Ok(command)
}

/// Names the scan in its report: GitHub refuses two of one tool and name, and Trivy writes several. What is no report is an
/// error, since it would pass for one without results.
fn name_report(report: &Path, scan: &str) -> Result<()> {
    let mut sarif: Value = serde_json::from_slice(&fs::read(report)?)?;
    let run = sarif.pointer_mut("/runs/0").and_then(Value::as_object_mut).context("it has no run")?;
    ensure!(run.get("results").is_some_and(Value::is_array), "it has no results");
    run.insert("automationDetails".to_owned(), json!({"id": format!("cargo-xtask-scan/{scan}/")}));
    fs::write(report, sarif.to_string()).context("it cannot be written")
}
