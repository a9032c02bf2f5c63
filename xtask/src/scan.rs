//! Scans what ships, by `scan/scans.sh`: a scanner's own exit code decides, and its report in SARIF is kept.

mod exceptions;
#[cfg(test)]
mod planted;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use time::OffsetDateTime;
use xtask::Verdict;
use xtask::services::{self, WrongDigest};
use xtask::tool::{self, Tool};

use crate::cargo;

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

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = cargo::root();
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["scan", "tool", "verdict"]);
    let mut verdicts = Vec::new();
    for (scan, tool) in SCANS {
        let named = |scans: &[String]| scans.iter().any(|it| it == scan);
        if named(&arguments.exclude) || !(arguments.only.is_empty() || named(&arguments.only)) {
            continue;
        }
        println!("\n==> {scan}");
        let (tool, verdict) = one(scan, &root).unwrap_or_else(|error| {
            println!("error: {error:#}");
            (tool.to_owned(), Verdict::Failed)
        });
        table.add_row([scan, &tool, &verdict.to_string()]);
        verdicts.push(verdict);
    }
    println!("\n{table}");
    if let Some(file) = &arguments.sbom {
        let mut sbom = script(&tool::find("trivy")?, &root)?;
        ensure!(
            sbom.arg("sbom").arg(root.join(file)).status()?.success(),
            "the image's content could not be listed"
        );
    }
    if verdicts.contains(&Verdict::Failed) {
        return Ok(ExitCode::FAILURE);
    }
    if verdicts.contains(&Verdict::NotRun) {
        println!("What was NOT RUN did not pass. Leave it out by name: --exclude <scan>.");
        return Ok(ExitCode::from(2));
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one scan of the repository at `root`; answers what made it, and how it ended.
pub(crate) fn one(scan: &str, root: &Path) -> Result<(String, Verdict)> {
    let (_, name) = SCANS.into_iter().find(|(name, _)| *name == scan).context("there is no such scan")?;
    let tool = match name {
        "xtask" => {
            let problems = exceptions::problems(root, OffsetDateTime::now_utc().date())?;
            problems.iter().for_each(|problem| println!("{problem}"));
            return Ok((name.to_owned(), Verdict::of(problems.is_empty())));
        }
        "diff" => Tool { program: which::which(name)?, version: "any".to_owned(), origin: "PATH".to_owned() },
        _ => match tool::find(name) {
            Ok(tool) => tool,
            // A tool that cannot be fetched is one thing, a file that is not the pinned one another.
            Err(error) if error.is::<WrongDigest>() => return Err(error),
            Err(error) => {
                println!("NOT RUN: {error:#}");
                return Ok((name.to_owned(), Verdict::NotRun));
            }
        },
    };
    let report = root.join(REPORTS).join(format!("{scan}.sarif"));
    fs::create_dir_all(root.join(REPORTS))?;
    // The report of an earlier run is not this one's.
    fs::remove_file(&report).ok();
    let output = script(&tool, root)?.arg(scan).env("REPORT", &report).output()?;
    print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let verdict = match output.status.code() {
        Some(NOT_RUN) => Verdict::NotRun,
        Some(0) => Verdict::Passed,
        _ => Verdict::Failed,
    };
    if verdict != Verdict::NotRun {
        name_report(&report, scan).with_context(|| format!("{} is no report", report.display()))?;
    }
    Ok((format!("{name} {} ({})", tool.version, tool.origin), verdict))
}

/// `scans.sh`, with the tool first on its PATH.
fn script(tool: &Tool, root: &Path) -> Result<Command> {
    let mut path = tool.program.parent().context("the tool is in no directory")?.as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.arg(cargo::root().join("xtask/src/scan/scans.sh")).current_dir(root).stdin(Stdio::null());
    command.env("PATH", path).env("TRIVY_CACHE", services::cache()?.join("trivy"));
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
