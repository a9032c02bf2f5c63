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
}

impl Scanner<'_> {
    pub(super) fn run(&self, scan: Scan, root: &Path, image: &Path) -> Result<Ran> {
        match scan {
            Scan::Dockerfile => self.dockerfile(root, Path::new("infra/docker/Dockerfile")),
            Scan::Workflows => self.workflows(root),
            Scan::Manifests => self.manifests(root),
            Scan::RepositorySecrets => self.secrets(root),
            Scan::RepositoryVulnerabilities => {
                self.vulnerabilities("fs", &["--scanners", "vuln", "--skip-dirs", "target"], root)
            }
            Scan::ImageSecrets => {
                let arguments =
                    ["--scanners", "secret,misconfig", "--image-config-scanners", "misconfig,secret"];
                self.trivy("image", &[&arguments[..], &["--skip-check-update", "--input"]].concat(), image)
            }
            Scan::ImageVulnerabilities => {
                let arguments = ["--scanners", "vuln", "--pkg-types", "os,library", "--input"];
                self.vulnerabilities("image", &arguments, image)
            }
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
        command.current_dir(neutral.path()).arg(what).arg("--cache-dir").arg(trivy_cache()?);
        command.args(["--quiet", "--skip-version-check", "--disable-telemetry", "--severity", SEVERITIES]);
        command.args(["--format", "sarif", "--output"]).arg(self.report).args(arguments);
        done(command.arg(subject))?;
        self.found()
    }

    fn vulnerabilities(&self, what: &str, arguments: &[&str], subject: &Path) -> Result<Ran> {
        if !self.offline {
            let mut command = self.command();
            command.args(["image", "--download-db-only", "--quiet", "--cache-dir"]).arg(trivy_cache()?);
            if let Err(error) = done(&mut command) {
                let words = format!("{error:#}");
                let cause = words.lines().last().unwrap_or_default();
                ensure!(!decides(), "the vulnerability database could not be fetched: {cause}");
                return Ok(Ran::NotRun(format!("the vulnerability database could not be fetched: {cause}")));
            }
        } else if !trivy_cache()?.join("db/metadata.json").is_file() {
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

fn trivy_cache() -> Result<PathBuf> {
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
        let scanner = Scanner { tool: &tool, offline: false, report: &report };
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
        let tar = |arguments: &[&str]| done(Command::new("tar").args(arguments).current_dir(directory));
        let mut diffs = Vec::new();
        for layer in ["1.tar", "2.tar"] {
            // Another content each time.
            fs::write(directory.join("file"), layer.repeat(600_000))?;
            tar(&["-cf", layer, "file"])?;
            let sum = done(Command::new("sha256sum").arg(directory.join(layer)))?;
            let sum = String::from_utf8(sum.stdout)?;
            diffs.push(format!("sha256:{}", sum.split_whitespace().next().unwrap()));
        }
        let history = [serde_json::json!({"created_by": "COPY"}), serde_json::json!({"created_by": "COPY"})];
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "config": {}, "history": history,
            "rootfs": {"type": "layers", "diff_ids": diffs},
        });
        fs::write(directory.join("config.json"), config.to_string())?;
        let manifest = serde_json::json!([{
            "Config": "config.json", "RepoTags": ["planted:1"], "Layers": ["1.tar", "2.tar"],
        }]);
        fs::write(directory.join("manifest.json"), manifest.to_string())?;
        tar(&["-cf", "image.tar", "manifest.json", "config.json", "1.tar", "2.tar"])?;
        Ok(directory.join("image.tar"))
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
}
