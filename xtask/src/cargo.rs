//! Commands of the workspace.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};

use crate::verdict::Verdict;

pub(crate) fn root() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

pub(crate) fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))
}

pub(crate) fn yaml<T: DeserializeOwned>(path: &str) -> Result<T> {
    serde_norway::from_str(&read(path)?).with_context(|| format!("{path} cannot be read"))
}

pub(crate) fn cargo(arguments: &[&str]) -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments)
}

/// Builds the worker and returns its program, unless `cargo xtask test` did. The whole workspace is built, so that tests
/// need not build its dependencies again with the features that they have together.
pub(crate) async fn build_worker() -> Result<PathBuf> {
    if let Some(built) = env::var_os("MUSTER_TEST_WORKER") {
        return Ok(built.into());
    }
    let build = ["build", "--locked", "--workspace", "--bins", "--examples"];
    ensure!(run(&mut cargo(&build)).await?.success(), "it does not build");
    Ok(target().join("debug/muster-worker"))
}

pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |target| root().join(target))
}

/// Builds this program with optimisation and runs that with the same arguments: nothing is measured in a debug build.
pub(crate) async fn rerun_optimised() -> Result<ExitCode> {
    let build = ["build", "--locked", "--profile", "measuring", "--package", "xtask"];
    ensure!(run(&mut cargo(&build)).await?.success(), "xtask does not build");
    Ok(exit_code(run(command(target().join("measuring/xtask"), &[]).args(env::args_os().skip(1))).await?))
}

pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// A command in the workspace's root, in a process group of its own, without input.
pub(crate) fn command(program: impl Into<OsString>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program.into());
    command.args(arguments).current_dir(root()).stdin(Stdio::null()).process_group(0);
    // Cargo sets these for this program. A cargo that is started here would take them for a change of the environment, and
    // build what watches them (ring) anew, with all that depends on it.
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end. Its output goes where this program's goes.
pub(crate) async fn run(command: &mut Command) -> Result<ExitStatus> {
    Group::spawn(command)?.0.wait().await.context("cannot wait for a command")
}

pub(crate) async fn passes(command: &mut Command) -> Result<Verdict> {
    Ok(Verdict::of(run(command).await?.success()))
}

/// A command and all that it started, ended when dropped.
pub(crate) struct Group(pub(crate) Child);

impl Group {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let program = command.as_std().get_program().display().to_string();
        command.spawn().map(Self).with_context(|| format!("cannot run {program}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // `id` is `None` once it has been waited for.
        let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) else { return };
        for (signal, patience) in [(Signal::SIGINT, 50), (Signal::SIGKILL, 10)] {
            killpg(Pid::from_raw(id), signal).ok();
            for _ in 0..patience {
                if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}
