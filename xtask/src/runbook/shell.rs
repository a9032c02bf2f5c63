use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{ChildStdin, ChildStdout};

use crate::cargo::{self, Group};

/// One bash that runs block after block, so that what one sets the next one finds. It and all that it started end when it
/// is dropped.
pub(crate) struct Shell {
    input: ChildStdin,
    ended: Lines<BufReader<ChildStdout>>,
    directory: PathBuf,
    blocks: usize,
    _group: Group,
}

impl Shell {
    /// Starts one that knows these variables and keeps what blocks print in this directory.
    pub(crate) fn start(variables: &BTreeMap<&'static str, OsString>, directory: &Path) -> Result<Self> {
        let mut command = cargo::command("bash", &["--noprofile", "--norc", "-euo", "pipefail"]);
        command.envs(variables).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut group = Group::spawn(&mut command)?;
        let input = group.0.stdin.take().context("bash has no input")?;
        let output = group.0.stdout.take().context("bash has no output")?;
        let directory = directory.join("blocks");
        fs::create_dir(&directory)?;
        Ok(Self { input, ended: BufReader::new(output).lines(), directory, blocks: 0, _group: group })
    }

    /// Runs one block, and answers what it printed, as a terminal would show it. After one that fails the shell is gone.
    pub(crate) async fn run(&mut self, script: &str, patience: Duration) -> Result<String> {
        self.blocks += 1;
        let file = self.directory.join(format!("{}.sh", self.blocks));
        let output = file.with_extension("out");
        fs::write(&file, script)?;
        let line = format!("source {} </dev/null >{} 2>&1\necho ended\n", file.display(), output.display());
        self.input.write_all(line.as_bytes()).await.context("the shell has ended")?;
        let ended = tokio::time::timeout(patience, self.ended.next_line()).await;
        let printed = String::from_utf8_lossy(&fs::read(&output).unwrap_or_default()).into_owned();
        let ended = ended.with_context(|| format!("not done in {patience:?}, having printed:\n{printed}"))?;
        ensure!(ended?.is_some(), "it failed, having printed:\n{printed}");
        Ok(printed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blocks_share_a_shell_until_one_fails_or_hangs() {
        let directory = tempfile::tempdir().unwrap();
        let patience = Duration::from_secs(20);
        let mut shell = Shell::start(&BTreeMap::from([("GIVEN", "given".into())]), directory.path()).unwrap();
        let set = shell.run("now=$GIVEN\nsay() { echo \"$now\"; }\n", patience).await.unwrap();
        assert_eq!(set, "");
        assert_eq!(shell.run("say\nsay >&2\n", patience).await.unwrap(), "given\ngiven\n");
        let error = shell.run("echo begun\nsleep 5\n", Duration::from_secs(1)).await.unwrap_err();
        assert!(error.to_string().contains("begun"), "{error:#}");

        let mut shell = Shell::start(&BTreeMap::new(), &directory.path().join("blocks")).unwrap();
        let error = shell.run("echo before\nfalse | true\necho after\n", patience).await.unwrap_err();
        assert!(error.to_string().ends_with("printed:\nbefore\n"), "{error:#}");
        assert!(shell.run("true", patience).await.is_err());
    }
}
