mod exceptions;
mod sarif;
mod scanners;
#[cfg(test)]
mod vulnerability_database;
mod workflows;

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use time::OffsetDateTime;
use xtask::services::WrongDigest;
use xtask::tool;

use crate::cargo;
use exceptions::Exceptions;
use sarif::Finding;

/// What `cargo xtask scan` takes.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run these scans and no other.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Scan>,
    /// Leave these scans out, by name: what is left out this way does not count as not run.
    #[arg(long, value_delimiter = ',')]
    exclude: Vec<Scan>,
    /// Fetch nothing.
    #[arg(long)]
    offline: bool,
    /// The image, as an archive of docker's form.
    #[arg(long, default_value = crate::image::ARCHIVE)]
    image: PathBuf,
    /// Where the reports go, one in SARIF for each scan.
    #[arg(long, default_value = "target/scan")]
    reports: PathBuf,
    /// Also list what is inside the image, in CycloneDX, in this file.
    #[arg(long)]
    sbom: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scan {
    /// Hadolint on the Dockerfile.
    Dockerfile,
    /// zizmor on the workflows, at its pedantic level.
    Workflows,
    /// actionlint on the workflows: their syntax, expressions and types.
    WorkflowSyntax,
    /// Muster's own rules on the workflows: they are what `infra/expected/workflows` says, no gate is passed over, no scanner
    /// stands beside a secret.
    WorkflowGates,
    /// Trivy's misconfigurations in the rendered manifests and the Dockerfile.
    Manifests,
    /// Trivy's secrets in the repository.
    RepositorySecrets,
    /// Trivy's vulnerabilities in what the repository depends on.
    RepositoryVulnerabilities,
    /// Trivy's secrets in the image and its configuration.
    ImageSecrets,
    /// Trivy's vulnerabilities in the image's system and library packages.
    ImageVulnerabilities,
    /// Dive's efficiency of the image's layers.
    ImageEfficiency,
}

impl Scan {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The scanner; none where the rules are Muster's own.
    fn tool(self) -> Option<&'static str> {
        match self {
            Self::Dockerfile => Some("hadolint"),
            Self::Workflows => Some("zizmor"),
            Self::WorkflowSyntax => Some("actionlint"),
            Self::WorkflowGates => None,
            Self::ImageEfficiency => Some("dive"),
            _ => Some("trivy"),
        }
    }

    fn of_vulnerabilities(self) -> bool {
        matches!(self, Self::RepositoryVulnerabilities | Self::ImageVulnerabilities)
    }

    fn of_image(self) -> bool {
        matches!(self, Self::ImageSecrets | Self::ImageVulnerabilities | Self::ImageEfficiency)
    }
}

/// How one scan ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Nothing was found but what is excepted, and vulnerabilities for which there is no fixed version yet.
    Passed { excepted: usize, unfixed: Vec<Finding> },
    /// What was found, and is not excepted.
    Found(Vec<Finding>),
    /// It could not be done, and why.
    NotRun(String),
}

/// On the machine that decides, what cannot be had is a failure.
pub(crate) fn decides() -> bool {
    env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true")
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let root = cargo::root();
    let exceptions = Exceptions::read(&root.join(exceptions::FILE))?;
    let wanted = |scan: &Scan| {
        (arguments.only.is_empty() || arguments.only.contains(scan)) && !arguments.exclude.contains(scan)
    };
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(["scan", "tool", "verdict"]);
    let (mut failed, mut missed) = (false, false);
    for problem in problems(&exceptions)? {
        println!("exceptions: {problem}");
        failed = true;
    }
    for scan in Scan::value_variants().iter().filter(|scan| wanted(scan)) {
        let (tool, outcome) = match one(*scan, arguments, &exceptions) {
            Ok(done) => done,
            Err(error) => (scan.tool().unwrap_or_default().to_owned(), Err(error)),
        };
        let verdict = match outcome {
            Ok(Outcome::Passed { excepted, unfixed }) => {
                for finding in &unfixed {
                    println!("{}: no fixed version yet, so it does not gate: {finding}", scan.name());
                }
                let also = [(excepted, "excepted"), (unfixed.len(), "without a fix")];
                let also = also.iter().filter(|(count, _)| *count > 0);
                also.fold("passed".to_owned(), |verdict, (count, what)| format!("{verdict}, {count} {what}"))
            }
            Ok(Outcome::Found(findings)) => {
                failed = true;
                for finding in &findings {
                    println!("{}: {finding}", scan.name());
                }
                format!("FAILED: {} found", findings.len())
            }
            Ok(Outcome::NotRun(why)) => {
                missed = true;
                println!("NOT RUN: {}: {why}", scan.name());
                "NOT RUN".to_owned()
            }
            Err(error) => {
                failed = true;
                println!("{}: {error:#}", scan.name());
                "FAILED: see above".to_owned()
            }
        };
        table.add_row([scan.name(), tool, verdict]);
    }
    println!("{table}");
    if let Some(file) = &arguments.sbom {
        let tool = tool::find("trivy", arguments.offline)?;
        scanners::list_inside(&tool, &root.join(&arguments.image), &root.join(file))?;
    }
    if missed {
        println!("What was NOT RUN did not pass. Leave it out by name: --exclude <scan>.");
    }
    Ok(match (failed, missed) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::from(2),
        (false, false) => ExitCode::SUCCESS,
    })
}

/// Runs one scan with what the repository holds, and says what it found. For `cargo xtask ci`.
pub(crate) fn alone(scan: Scan) -> Result<Outcome> {
    let exceptions = Exceptions::read(&cargo::root().join(exceptions::FILE))?;
    let arguments = Arguments {
        only: vec![scan],
        exclude: Vec::new(),
        offline: false,
        image: crate::image::ARCHIVE.into(),
        reports: "target/scan".into(),
        sbom: None,
    };
    one(scan, &arguments, &exceptions)?.1
}

/// What is wrong with the exceptions today. For `cargo xtask ci`.
pub(crate) fn problems_of_exceptions() -> Result<Vec<String>> {
    problems(&Exceptions::read(&cargo::root().join(exceptions::FILE))?)
}

fn problems(exceptions: &Exceptions) -> Result<Vec<String>> {
    let deny = fs::read_to_string(cargo::root().join(exceptions::DENY)).context("cannot read deny.toml")?;
    let mut problems = exceptions.expired(OffsetDateTime::now_utc().date());
    problems.extend(exceptions.unlike(&deny)?);
    Ok(problems)
}

fn one(scan: Scan, arguments: &Arguments, exceptions: &Exceptions) -> Result<(String, Result<Outcome>)> {
    let root = cargo::root();
    let reports = root.join(&arguments.reports);
    fs::create_dir_all(&reports).with_context(|| format!("cannot make {}", reports.display()))?;
    let report = reports.join(format!("{}.sarif", scan.name()));
    if report.exists() {
        // One of a run before would be uploaded as this one's.
        fs::remove_file(&report)?;
    }
    let named = |ran| {
        sarif::name(&report, &scan.name())?;
        Ok(gate(scan, ran, exceptions))
    };
    let Some(name) = scan.tool() else {
        let findings = workflows::check(&root)?;
        sarif::write(&report, "cargo xtask scan", &findings)?;
        return Ok(("Muster's own".to_owned(), named(scanners::Ran::Findings(findings))));
    };
    let tool = match tool::find(name, arguments.offline) {
        Ok(tool) => tool,
        // Not to be had is one thing; a file that is not the pinned one another.
        Err(error) if error.is::<WrongDigest>() => return Ok((name.to_owned(), Err(error))),
        Err(error) => return Ok((name.to_owned(), Ok(Outcome::NotRun(format!("{error:#}"))))),
    };
    let described = format!("{name} {} ({})", tool.version, tool.origin);
    let image = root.join(&arguments.image);
    if scan.of_image() && !image.is_file() {
        let why = format!("{} is not there: make it with `cargo xtask image`", image.display());
        return Ok((described, Ok(Outcome::NotRun(why))));
    }
    let scanner = scanners::Scanner {
        tool: &tool,
        offline: arguments.offline,
        report: &report,
        trivy_cache: &scanners::trivy_cache()?,
    };
    let outcome = match scanner.run(scan, &root, &image) {
        Ok(scanners::Ran::NotRun(why)) => Ok(Outcome::NotRun(why)),
        ran => ran.and_then(named),
    };
    Ok((described, outcome))
}

fn gate(scan: Scan, ran: scanners::Ran, exceptions: &Exceptions) -> Outcome {
    match ran {
        scanners::Ran::NotRun(why) => Outcome::NotRun(why),
        scanners::Ran::Findings(findings) => {
            let name = scan.name();
            let all = findings.len();
            let left: Vec<Finding> =
                findings.into_iter().filter(|finding| !exceptions.covers(&name, finding)).collect();
            let excepted = all.saturating_sub(left.len());
            // A gate that nobody can pass is soon switched off: what has no fix is shown and stays in the report.
            let (unfixed, left): (Vec<Finding>, Vec<Finding>) =
                left.into_iter().partition(|finding| scan.of_vulnerabilities() && finding.has_no_fix());
            if left.is_empty() { Outcome::Passed { excepted, unfixed } } else { Outcome::Found(left) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vulnerability_gates_when_there_is_a_fixed_version_and_is_shown_when_there_is_none() {
        let finding = |fixed: &str| Finding {
            rule: "CVE-2026-25541".to_owned(),
            path: "Cargo.lock".to_owned(),
            line: 1,
            message: format!("Package: bytes\nInstalled Version: 1.11.0\nFixed Version: {fixed}\nLink: none"),
        };
        let exceptions = Exceptions::read(&cargo::root().join(exceptions::FILE)).unwrap();
        let gated = |scan, findings| gate(scan, scanners::Ran::Findings(findings), &exceptions);
        let scan = Scan::ImageVulnerabilities;
        assert!(
            matches!(gated(scan, vec![finding("1.11.1"), finding("")]), Outcome::Found(left) if left.len() == 1)
        );
        let passed = gated(scan, vec![finding("")]);
        assert!(matches!(passed, Outcome::Passed { excepted: 0, unfixed } if unfixed.len() == 1));
        // A scanner's finding of another kind says nothing of a fix, and gates.
        assert!(matches!(gated(Scan::ImageSecrets, vec![finding("")]), Outcome::Found(_)));
    }
}
