use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
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

/// What became of one block.
pub(crate) struct Ran {
    pub(crate) succeeded: bool,
    /// On standard output and standard error, as a terminal would show it.
    pub(crate) printed: String,
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

    /// Runs one block. After one that fails the shell is gone.
    pub(crate) async fn run(&mut self, script: &str, patience: Duration) -> Result<Ran> {
        self.blocks += 1;
        let file = self.directory.join(format!("{}.sh", self.blocks));
        let output = file.with_extension("out");
        fs::write(&file, script)?;
        let line = format!("source {} </dev/null >{} 2>&1\necho ended\n", file.display(), output.display());
        self.input.write_all(line.as_bytes()).await.context("the shell has ended")?;
        let ended = tokio::time::timeout(patience, self.ended.next_line()).await;
        let printed = String::from_utf8_lossy(&fs::read(&output).unwrap_or_default()).into_owned();
        match ended {
            Ok(ended) => Ok(Ran { succeeded: ended?.is_some(), printed }),
            Err(_) => bail!("it takes longer than {patience:?}, having printed:\n{printed}"),
        }
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
        assert!(set.succeeded && set.printed.is_empty());
        let said = shell.run("say\nsay >&2\n", patience).await.unwrap();
        assert!(said.succeeded && said.printed == "given\ngiven\n", "{}", said.printed);
        let error = shell.run("echo begun\nsleep 5\n", Duration::from_secs(1)).await.err().unwrap();
        assert!(error.to_string().contains("begun"), "{error:#}");

        let mut shell = Shell::start(&BTreeMap::new(), &directory.path().join("blocks")).unwrap();
        let failed = shell.run("echo before\nfalse | true\necho after\n", patience).await.unwrap();
        assert!(!failed.succeeded && failed.printed == "before\n", "{}", failed.printed);
        assert!(!shell.run("true", patience).await.is_ok_and(|ran| ran.succeeded));
    }
}
