//! The program that builds and runs containers here: docker, podman or buildah.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Prepared;
use crate::cargo;

/// Where a container finds its secrets.
pub(super) const MOUNTED: &str = "/etc/muster";

/// The Deployment's memory limit.
const MEMORY: &str = "512m";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Docker,
    Podman,
    Buildah,
}

/// One that works on this machine.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    kind: Kind,
    /// Options before the command.
    global: Vec<&'static str>,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program(), self.global.join(" "))
    }
}

impl Engine {
    /// The first of docker, podman and buildah that is there and works.
    pub(super) fn find() -> Result<Self> {
        // runc is the runtime that also works where the cgroups of both versions are mounted.
        let hybrid = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let old = ["--runtime", "runc", "--cgroup-manager", "cgroupfs"];
        let mut podman = vec!["--storage-driver", "overlay"];
        podman.extend(old.iter().filter(|_| hybrid));
        let engines = [
            Self { kind: Kind::Docker, global: Vec::new() },
            Self { kind: Kind::Podman, global: podman },
            Self { kind: Kind::Buildah, global: vec!["--storage-driver", "overlay"] },
        ];
        let works = |engine: &Self| {
            let mut command = engine.command("info");
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        engines
            .into_iter()
            .find(works)
            .context("none of docker, podman and buildah works on this machine: install one")
    }

    pub(super) fn can_run(&self) -> bool {
        self.kind != Kind::Buildah
    }

    fn program(&self) -> &'static str {
        match self.kind {
            Kind::Docker => "docker",
            Kind::Podman => "podman",
            Kind::Buildah => "buildah",
        }
    }

    fn command(&self, command: &str) -> Command {
        let mut whole = Command::new(self.program());
        whole.args(&self.global).arg(command).stdin(Stdio::null());
        whole
    }

    /// Builds the Dockerfile; every time in the image is the `epoch`, in seconds since 1970. `anew`: without a cache.
    pub(super) fn build(
        &self,
        image: &str,
        rust_image: &str,
        revision: &str,
        epoch: &str,
        anew: bool,
    ) -> tokio::process::Command {
        let mut command = cargo::command(self.program(), &self.global);
        command.arg(if self.kind == Kind::Buildah { "bud" } else { "build" });
        if self.kind != Kind::Docker {
            // Docker's form, since the OCI's has no health check; chroot, which takes no privilege.
            command.args(["--format", "docker", "--isolation", "chroot", "--timestamp", epoch]);
        } else {
            let output = format!("type=docker,name={image},rewrite-timestamp=true");
            command.env("SOURCE_DATE_EPOCH", epoch).args(["--output", &output]);
        }
        if anew {
            command.arg("--no-cache");
        }
        command.args(["--network", "host", "--tag", image, "--file", "infra/docker/Dockerfile"]);
        command.args(["--build-arg", &format!("RUST_IMAGE={rust_image}")]);
        command.args(["--build-arg", &format!("REVISION={revision}")]);
        command.args(["--build-arg", &format!("VERSION={}", env!("CARGO_PKG_VERSION"))]);
        command.arg(".");
        command
    }

    /// Takes an image from an archive in docker's form; answers what it is called here.
    pub(super) fn load(&self, archive: &Path) -> Result<String> {
        ensure!(self.can_run(), "loading an image takes docker or podman");
        let said = text(self.command("load").arg("--input").arg(archive))?;
        let (_, image) = said.rsplit_once(": ").with_context(|| format!("{self} answers {said}"))?;
        Ok(image.trim().to_owned())
    }

    /// Writes the image as an archive in docker's form.
    pub(super) fn save(&self, image: &str, archive: &Path) -> Result<()> {
        let mut command = match self.kind {
            Kind::Docker => self.command("save"),
            Kind::Podman => {
                let mut command = self.command("save");
                command.args(["--format", "docker-archive"]);
                command
            }
            Kind::Buildah => {
                let mut command = self.command("push");
                command.arg(image).arg(format!("docker-archive:{}:{image}", archive.display()));
                return text(&mut command).map(drop);
            }
        };
        text(command.arg("--output").arg(archive).arg(image)).map(drop)
    }

    /// What the manifest asks of Kubernetes, asked of this engine.
    fn hardened(&self, prepared: &Prepared) -> Command {
        let mut command = self.command("run");
        let user = format!("{0}:{0}", prepared.user);
        command.args(["--network", "host", "--user", &user, "--read-only", "--cap-drop", "ALL"]);
        command.args(["--security-opt", "no-new-privileges", "--memory", MEMORY]);
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
        if self.kind == Kind::Podman {
            // Else it mounts a writable /tmp and others beside the read-only root.
            command.arg("--read-only-tmpfs=false");
        }
        let mounted = prepared.mounted.path().join(MOUNTED.trim_start_matches('/'));
        command.arg("--volume").arg(format!("{}:{MOUNTED}:ro", mounted.display()));
        for (key, value) in &prepared.variables {
            command.arg("--env").arg(format!("{key}={value}"));
        }
        command
    }

    /// Runs a command of the image to its end: whether it succeeded, and its last line.
    pub(super) fn run_to_end(&self, image: &str, prepared: &Prepared) -> Result<(bool, String)> {
        let mut command = self.hardened(prepared);
        let output = command.args(["--rm", image]).args(&prepared.arguments).output()?;
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8_lossy(&all);
        let shown = if output.status.success() { all.lines().last().unwrap_or_default() } else { all.trim() };
        Ok((output.status.success(), shown.to_owned()))
    }

    /// Starts a command of the image.
    pub(super) fn start(&self, image: &str, prepared: &Prepared) -> Result<Container> {
        let mut command = self.hardened(prepared);
        let id = text(command.args(["--detach", image]).args(&prepared.arguments))?;
        Ok(Container { engine: self.clone(), id: id.lines().last().unwrap_or_default().to_owned() })
    }
}

/// A container at work. It is gone when this value is dropped.
pub(super) struct Container {
    engine: Engine,
    id: String,
}

impl Container {
    pub(super) fn log(&self) -> String {
        let output = self.engine.command("logs").arg(&self.id).output();
        output.map_or_else(
            |error| error.to_string(),
            |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    }

    /// What the engine says that it granted, and what the kernel says of the process, where this machine's kernel runs it.
    pub(super) fn confinement(&self) -> Result<Confinement> {
        let form = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Memory}} {{.State.Pid}}";
        let inspected = text(self.engine.command("inspect").args(["--format", form, &self.id]))?;
        let words: Vec<&str> = inspected.split_whitespace().collect();
        let [read_only, memory, process] = words.as_slice() else {
            bail!("{} answers {inspected}", self.engine.program())
        };
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok();
        Ok(Confinement {
            read_only_root: *read_only == "true",
            memory: memory.parse().context("a memory limit that is no number")?,
            process: status
                .map(|status| ["Uid", "CapEff", "NoNewPrivs", "Seccomp"].map(|key| field(&status, key))),
        })
    }

    pub(super) fn exec(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = self.engine.command("exec").arg(&self.id).args(arguments).output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
        Ok((output.status.success(), if text.is_empty() { output.status.to_string() } else { text }))
    }

    /// Sends SIGTERM and answers the exit code.
    pub(super) fn stop(&self, patience: Duration) -> Result<i32> {
        text(self.engine.command("kill").args(["--signal", "SIGTERM", &self.id]))?;
        let deadline = Instant::now() + patience;
        loop {
            let form = "{{.State.Running}} {{.State.ExitCode}}";
            let state = text(self.engine.command("inspect").args(["--format", form, &self.id]))?;
            if let Some(code) = state.trim().strip_prefix("false ") {
                return code.parse().context("an exit code that is no number");
            }
            if Instant::now() > deadline {
                bail!("it did not stop within {patience:?}:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// How a container is held.
pub(super) struct Confinement {
    pub(super) read_only_root: bool,
    /// In bytes; 0 without a limit.
    pub(super) memory: u64,
    /// Its user, effective capabilities, whether it may gain privileges, and its seccomp mode, as the kernel writes them.
    pub(super) process: Option<[String; 4]>,
}

/// The first word of a line such as `NoNewPrivs: 1`.
fn field(status: &str, key: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()).unwrap_or_default().to_owned()
}

impl Drop for Container {
    fn drop(&mut self) {
        self.engine.command("rm").args(["--force", &self.id]).output().ok();
    }
}

fn text(command: &mut Command) -> Result<String> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
