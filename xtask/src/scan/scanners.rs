//! How each scanner is asked. All report and none judges: exceptions and the gate are ours, and the same for each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use xtask::services;
use xtask::tool::Tool;

use super::sarif::{self, Finding};
use super::{Scan, decides};
use crate::manifests::render;

/// The severities at which Trivy's findings gate.
const SEVERITIES: &str = "CRITICAL,HIGH,MEDIUM";

/// What a scanner answered.
pub(super) enum Ran {
    Findings(Vec<Finding>),
    NotRun(String),
}

pub(super) struct Scanner<'a> {
    pub(super) tool: &'a Tool,
    pub(super) offline: bool,
    /// Where its report in SARIF goes.
    pub(super) report: &'a Path,
    /// Where Trivy keeps its databases.
    pub(super) trivy_cache: &'a Path,
}

impl Scanner<'_> {
    pub(super) fn run(&self, scan: Scan, root: &Path, image: &Path) -> Result<Ran> {
        match scan {
            Scan::Dockerfile => self.dockerfile(root, Path::new("infra/docker/Dockerfile")),
            Scan::Workflows => self.workflows(root),
            Scan::WorkflowSyntax => self.workflow_syntax(root),
            Scan::WorkflowGates => bail!("no scanner is asked for these rules"),
            Scan::Manifests => self.manifests(root),
            Scan::RepositorySecrets => self.secrets(root),
            Scan::RepositoryVulnerabilities => self.repository_vulnerabilities(root),
            Scan::ImageSecrets => self.image_secrets(image),
            Scan::ImageVulnerabilities => self.image_vulnerabilities(image),
            Scan::ImageEfficiency => self.efficiency(root, image),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.tool.program);
        command.stdin(Stdio::null());
        command
    }

    fn found(&self) -> Result<Ran> {
        sarif::read(self.report).map(Ran::Findings)
    }

    pub(super) fn dockerfile(&self, root: &Path, dockerfile: &Path) -> Result<Ran> {
        let mut command = self.command();
        command.current_dir(root).args(["--no-fail", "--format", "sarif", "--config"]);
        let output = done(command.arg(root_file(".hadolint.yaml")).arg(dockerfile))?;
        fs::write(self.report, output.stdout)?;
        self.found()
    }

    pub(super) fn workflows(&self, root: &Path) -> Result<Ran> {
        let mut command = self.command();
        // Offline: its other audits need a token, and no scanner is given one.
        command.current_dir(root).args(["--pedantic", "--offline", "--no-exit-codes", "--format", "sarif"]);
        let output = done(command.arg("--config").arg(root_file(".github/zizmor.yml")).arg(".github"))?;
        fs::write(self.report, output.stdout)?;
        self.found()
    }

    /// Without the checkers of scripts that it would take from PATH: a verdict is the same on every machine.
    fn workflow_syntax(&self, root: &Path) -> Result<Ran> {
        let mut command = self.command();
        command.current_dir(root).args(["-shellcheck=", "-pyflakes=", "-format", "{{json .}}"]);
        let output = command.output().context("cannot run actionlint")?;
        // 1 says that it found something, more that it could not look.
        let looked = output.status.code().is_some_and(|code| code <= 1);
        ensure!(
            looked,
            "actionlint ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let found: Vec<Mistake> =
            serde_json::from_slice(&output.stdout).context("actionlint answers what is no JSON")?;
        let findings = found.into_iter().map(|it| Finding {
            rule: it.kind,
            path: it.filepath,
            line: it.line,
            message: it.message,
        });
        sarif::write(self.report, "actionlint", &findings.collect::<Vec<_>>())?;
        self.found()
    }

    fn manifests(&self, root: &Path) -> Result<Ran> {
        let Some(kubectl) = render::kubectl() else {
            return Ok(Ran::NotRun(
                "kubectl, which renders the manifests, is not on this machine".to_owned(),
            ));
        };
        let scratch = tempfile::tempdir()?;
        for overlay in render::OVERLAYS {
            let text = render::text(&kubectl, &root.join("infra/k8s").join(overlay))?;
            let name = overlay.rsplit('/').next().unwrap_or(overlay);
            fs::write(scratch.path().join(format!("{name}.yaml")), text)?;
        }
        fs::copy(root.join("infra/docker/Dockerfile"), scratch.path().join("Dockerfile"))?;
        self.misconfigurations(scratch.path())
    }

    pub(super) fn misconfigurations(&self, directory: &Path) -> Result<Ran> {
        self.trivy("config", &["--skip-check-update"], directory)
    }

    pub(super) fn secrets(&self, directory: &Path) -> Result<Ran> {
        self.trivy("fs", &["--scanners", "secret", "--skip-dirs", "target", "--skip-dirs", ".git"], directory)
    }

    fn trivy(&self, what: &str, arguments: &[&str], subject: &Path) -> Result<Ran> {
        let mut command = self.command();
        // From a neutral place, where no configuration file of Trivy can change what is looked for.
        let neutral = tempfile::tempdir()?;
        command.current_dir(neutral.path()).arg(what).arg("--cache-dir").arg(self.trivy_cache);
        command.args(["--quiet", "--skip-version-check", "--disable-telemetry", "--severity", SEVERITIES]);
        command.args(["--format", "sarif", "--output"]).arg(self.report).args(arguments);
        done(command.arg(subject))?;
        self.found()
    }

    pub(super) fn image_secrets(&self, image: &Path) -> Result<Ran> {
        let arguments = ["--scanners", "secret,misconfig", "--image-config-scanners", "misconfig,secret"];
        self.trivy("image", &[&arguments[..], &["--skip-check-update", "--input"]].concat(), image)
    }

    pub(super) fn repository_vulnerabilities(&self, directory: &Path) -> Result<Ran> {
        self.vulnerabilities("fs", &["--scanners", "vuln", "--skip-dirs", "target"], directory)
    }

    pub(super) fn image_vulnerabilities(&self, image: &Path) -> Result<Ran> {
        self.vulnerabilities("image", &["--scanners", "vuln", "--pkg-types", "os,library", "--input"], image)
    }

    fn vulnerabilities(&self, what: &str, arguments: &[&str], subject: &Path) -> Result<Ran> {
        if !self.offline {
            let mut command = self.command();
            command.args(["image", "--download-db-only", "--quiet", "--cache-dir"]).arg(self.trivy_cache);
            if let Err(error) = done(&mut command) {
                let words = format!("{error:#}");
                let cause = words.lines().last().unwrap_or_default();
                ensure!(!decides(), "the vulnerability database could not be fetched: {cause}");
                return Ok(Ran::NotRun(format!("the vulnerability database could not be fetched: {cause}")));
            }
        } else if !self.trivy_cache.join("db/metadata.json").is_file() {
            return Ok(Ran::NotRun("the vulnerability database is not in the cache".to_owned()));
        }
        let here = ["--skip-db-update", "--offline-scan"];
        self.trivy(what, &[&here[..], arguments].concat(), subject)
    }

    fn efficiency(&self, root: &Path, image: &Path) -> Result<Ran> {
        let mut command = self.command();
        command.args(["--source", "docker-archive", "--ci", "--ci-config"]).arg(root.join(".dive-ci"));
        let output = command.arg(image).env("CI", "true").output().context("cannot run dive")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            text.contains("efficiency:"),
            "dive could not analyse the image: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // The verdict before the colon may be coloured.
        let parted = text.lines().filter_map(|line| line.split_once(": "));
        let failed = parted.filter(|(verdict, _)| verdict.contains("FAIL")).map(|(_, rule)| rule);
        let finding = |line: &str| Finding {
            rule: line.split(':').next().unwrap_or(line).to_owned(),
            path: "infra/docker/Dockerfile".to_owned(),
            line: 1,
            message: line.to_owned(),
        };
        let findings: Vec<Finding> = failed.map(finding).collect();
        ensure!(output.status.success() == findings.is_empty(), "dive ended with {}: {text}", output.status);
        sarif::write(self.report, "dive", &findings)?;
        Ok(Ran::Findings(findings))
    }
}

/// What actionlint says of one place.
#[derive(serde::Deserialize)]
struct Mistake {
    kind: String,
    filepath: String,
    line: u64,
    message: String,
}

/// Writes what is inside an image, in CycloneDX.
pub(super) fn list_inside(tool: &Tool, image: &Path, file: &Path) -> Result<()> {
    let mut command = Command::new(&tool.program);
    command.stdin(Stdio::null()).args(["image", "--quiet", "--offline-scan", "--format", "cyclonedx"]);
    command.arg("--cache-dir").arg(trivy_cache()?).arg("--output").arg(file).arg("--input").arg(image);
    done(&mut command).map(drop)
}

fn root_file(path: &str) -> PathBuf {
    crate::cargo::root().join(path)
}

/// Where Trivy's databases are kept.
pub(super) fn trivy_cache() -> Result<PathBuf> {
    Ok(services::cache()?.join("trivy"))
}

/// Runs a command that has to succeed: a scanner that breaks is not one that found nothing.
fn done(command: &mut Command) -> Result<Output> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::planted::{File, archive};
    use crate::scan::vulnerability_database::Advisory;

    /// Runs a scanner on a planted fault; `None` when the tool cannot be had, which GitHub does not let pass.
    fn rules(tool: &str, scan: impl FnOnce(&Scanner<'_>, &Path) -> Result<Ran>) -> Option<Vec<String>> {
        let tool = match xtask::tool::find(tool, false) {
            Ok(tool) => tool,
            Err(error) => {
                println!("NOT RUN: {error:#}");
                assert!(!decides(), "{error:#}");
                return None;
            }
        };
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("report.sarif");
        let planted = directory.path().join("planted");
        fs::create_dir(&planted).unwrap();
        // Offline: what may be fetched is the tool, and Trivy's database is planted.
        let trivy_cache = directory.path().join("trivy");
        let scanner = Scanner { tool: &tool, offline: true, report: &report, trivy_cache: &trivy_cache };
        match scan(&scanner, &planted).unwrap() {
            Ran::Findings(findings) => Some(findings.into_iter().map(|finding| finding.rule).collect()),
            Ran::NotRun(why) => panic!("{why}"),
        }
    }

    #[test]
    fn hadolint_finds_a_moving_tag_and_root() {
        let found = rules("hadolint", |scanner, directory| {
            let file = directory.join("Dockerfile");
            fs::write(&file, "FROM docker.io/library/debian:latest\nUSER root\n")?;
            scanner.dockerfile(directory, &file)
        });
        let Some(found) = found else { return };
        assert!(found.contains(&"DL3007".to_owned()) && found.contains(&"DL3002".to_owned()), "{found:?}");
    }

    #[test]
    fn zizmor_finds_an_unpinned_action() {
        let workflow = "name: w\non: push\npermissions: {}\njobs:\n  j:\n    name: j\n    runs-on: ubuntu-24.04\n    \
                        steps:\n      - uses: actions/checkout@v7\n";
        let found = rules("zizmor", |scanner, directory| {
            fs::create_dir_all(directory.join(".github/workflows"))?;
            fs::write(directory.join(".github/workflows/w.yml"), workflow)?;
            scanner.workflows(directory)
        });
        let Some(found) = found else { return };
        assert!(found.iter().any(|rule| rule.contains("unpinned-uses")), "{found:?}");
        assert!(found.iter().any(|rule| rule.contains("artipacked")), "{found:?}");
    }

    #[test]
    fn actionlint_finds_a_need_of_no_job_and_an_unknown_key() {
        let workflow = "name: w\non: push\npermissions: {}\njobs:\n  j:\n    needs: gone\n    runs-on: ubuntu-24.04\n    \
                        steps:\n      - run: echo\n        contine-on-error: true\n";
        let found = rules("actionlint", |scanner, directory| {
            fs::create_dir_all(directory.join(".github/workflows"))?;
            fs::create_dir(directory.join(".git"))?;
            fs::write(directory.join(".github/workflows/w.yml"), workflow)?;
            scanner.workflow_syntax(directory)
        });
        let Some(found) = found else { return };
        assert!(found.contains(&"job-needs".to_owned()), "{found:?}");
        assert!(found.contains(&"syntax-check".to_owned()), "{found:?}");
    }

    #[test]
    fn trivy_finds_root_a_writable_root_and_a_moving_tag() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n    - name: c\n      \
                   image: debian:latest\n      securityContext: {runAsUser: 0, readOnlyRootFilesystem: false}\n";
        let found = rules("trivy", |scanner, directory| {
            fs::write(directory.join("pod.yaml"), pod)?;
            scanner.misconfigurations(directory)
        });
        let Some(found) = found else { return };
        for (rule, what) in [("KSV-0012", "root"), ("KSV-0013", "latest"), ("KSV-0014", "writable root")] {
            assert!(found.contains(&rule.to_owned()), "{what}: {found:?}");
        }
    }

    /// An image of two layers, the second of which writes the first one's 3 MB anew.
    fn wasteful_image(directory: &Path) -> Result<PathBuf> {
        let contents = ["1", "2"].map(|content| content.repeat(3_000_000));
        let [first, second] =
            contents.each_ref().map(|it| [File { name: "file", mode: 0o444, content: it.as_bytes() }]);
        archive(directory, &[&first, &second], &serde_json::json!({}))
    }

    #[test]
    fn dive_finds_waste() {
        let found = rules("dive", |scanner, directory| {
            scanner.efficiency(&crate::cargo::root(), &wasteful_image(directory)?)
        });
        let Some(found) = found else { return };
        assert!(found.contains(&"lowestEfficiency".to_owned()), "{found:?}");
        assert!(found.contains(&"highestWastedBytes".to_owned()), "{found:?}");
    }

    #[test]
    fn trivy_finds_a_secret_in_an_image() {
        let key = format!("aws_access_key_id = AKIA{}\n", "QYLPMN5HHHFPZAM2");
        let found = rules("trivy", |scanner, directory| {
            let file = File { name: "credentials", mode: 0o444, content: key.as_bytes() };
            scanner.image_secrets(&archive(directory, &[&[file]], &serde_json::json!({}))?)
        });
        let Some(found) = found else { return };
        assert!(found.contains(&"aws-access-key-id".to_owned()), "{found:?}");
    }

    #[test]
    fn trivy_finds_a_secret() {
        // Put together here, so that no scanner finds it in this file.
        let key = format!("aws_access_key_id = AKIA{}\n", "QYLPMN5HHHFPZAM2");
        let found = rules("trivy", |scanner, directory| {
            fs::write(directory.join("credentials"), key)?;
            scanner.secrets(directory)
        });
        let Some(found) = found else { return };
        assert!(found.contains(&"aws-access-key-id".to_owned()), "{found:?}");
    }

    /// A lock file that names one crate.
    fn lock_file(version: &str) -> String {
        format!(
            "version = 4\n\n[[package]]\nname = \"planted\"\nversion = \"0.1.0\"\ndependencies = [\"bytes\"]\n\n\
             [[package]]\nname = \"bytes\"\nversion = \"{version}\"\n\
             source = \"registry+https://github.com/rust-lang/crates.io-index\"\n",
        )
    }

    #[test]
    fn trivy_finds_a_vulnerable_crate() {
        let scanned = |version: &'static str| {
            rules("trivy", move |scanner, directory| {
                let advisory = Advisory {
                    id: "CVE-2026-25541",
                    package: "bytes",
                    vulnerable: ">= 1.2.1, < 1.11.1",
                    patched: "1.11.1",
                };
                advisory.plant(scanner.trivy_cache)?;
                fs::write(directory.join("Cargo.lock"), lock_file(version))?;
                scanner.repository_vulnerabilities(directory)
            })
        };
        let Some(found) = scanned("1.11.0") else { return };
        assert_eq!(found, ["CVE-2026-25541"]);
        assert_eq!(scanned("1.11.1").unwrap(), [""; 0]);
    }

    #[test]
    fn without_a_database_no_vulnerability_scan_passes() {
        let directory = tempfile::tempdir().unwrap();
        let tool = Tool { program: "/nowhere".into(), version: String::new(), origin: String::new() };
        let report = directory.path().join("report.sarif");
        let scanner = Scanner { tool: &tool, offline: true, report: &report, trivy_cache: directory.path() };
        let ran = scanner.repository_vulnerabilities(directory.path()).unwrap();
        assert!(matches!(ran, Ran::NotRun(why) if why.contains("database")));
    }
}
