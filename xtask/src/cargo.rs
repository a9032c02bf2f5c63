use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here).parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// The cargo that runs this program.
pub(crate) fn program() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Builds the worker and answers its program.
///
/// # Errors
/// When it does not build.
pub(crate) async fn build_worker() -> Result<PathBuf> {
    let build = ["build", "--locked", "--package", "muster-worker"];
    ensure!(run(&mut command(program(), &build)).await?.success(), "the worker does not build");
    Ok(target().join("debug/muster-worker"))
}

/// The worker that a test runs: the one that `cargo xtask test` built, else one built now.
#[cfg(test)]
pub(crate) async fn worker_of_this_test() -> PathBuf {
    match env::var_os("MUSTER_TEST_WORKER") {
        Some(program) => program.into(),
        None => build_worker().await.unwrap(),
    }
}

fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |target| root().join(target))
}

/// Builds the worker as it is released, and answers its program.
///
/// # Errors
/// When it does not build.
pub(crate) async fn build_released_worker() -> Result<PathBuf> {
    let build = ["build", "--locked", "--release", "--package", "muster-worker"];
    ensure!(run(&mut command(program(), &build)).await?.success(), "the worker does not build");
    Ok(target().join("release/muster-worker"))
}

/// Builds this program with optimisation and runs that with the same arguments: nothing is measured in a debug build.
///
/// # Errors
/// When it does not build or cannot be run.
pub(crate) async fn rerun_optimised() -> Result<ExitCode> {
    let build = ["build", "--locked", "--profile", "measuring", "--package", "xtask"];
    ensure!(run(&mut command(program(), &build)).await?.success(), "xtask does not build");
    let mut again = command(target().join("measuring/xtask"), &[]);
    again.args(env::args_os().skip(1));
    let status = run(&mut again).await?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A command of the workspace: in its root, in a process group of its own, without input.
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
///
/// # Errors
/// When it cannot be run.
pub(crate) async fn run(command: &mut Command) -> Result<ExitStatus> {
    Group::spawn(command)?.0.wait().await.context("cannot wait for a command")
}

/// As [`run`], and hands each whole line of its standard output to `line` as it passes.
///
/// # Errors
/// When it cannot be run.
pub(crate) async fn run_reading(command: &mut Command, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut group = Group::spawn(command.stdout(Stdio::piped()))?;
    let mut output = group.0.stdout.take().context("a command has no output")?;
    let mut terminal = tokio::io::stdout();
    let mut chunk = vec![0; 8192];
    let mut pending = Vec::new();
    loop {
        let length = output.read(&mut chunk).await?;
        let Some(read) = chunk.get(..length).filter(|read| !read.is_empty()) else { break };
        // At once, so that a test that hangs is seen by its name.
        terminal.write_all(read).await?;
        terminal.flush().await?;
        pending.extend_from_slice(read);
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let whole: Vec<u8> = pending.drain(..=end).collect();
            line(String::from_utf8_lossy(&whole).trim_end());
        }
    }
    group.0.wait().await.context("cannot wait for a command")
}

/// A command and all that it started, ended when dropped.
pub(crate) struct Group(pub(crate) Child);

impl Group {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let spawned = command.spawn();
        spawned.map(Self).with_context(|| format!("cannot run {}", command.as_std().get_program().display()))
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
