use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::RunDirectory;

/// How long a process may take to end when asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// An address of this machine whose port nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

/// Asks for a path by HTTP; answers the status and the body. It fails when there is no answer within five seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(5)))
        .http_status_as_error(false)
        .build()
        .new_agent();
    let mut answer = agent.get(format!("http://{address}{path}")).call()?;
    Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
}

/// A server process of a run. It is in a process group of its own, so that Ctrl-C in the terminal does not reach it, and
/// it is stopped when this value is dropped.
#[derive(Debug)]
pub struct Process {
    /// The file that its output goes to.
    pub log: PathBuf,
    name: String,
    child: Child,
    stop_signal: Signal,
    pid_file: PathBuf,
    // Held so that the directory outlives what runs in it.
    _directory: RunDirectory,
}

impl Process {
    /// Starts `command` under `name`, with its output appended to `<name>.log`. `stop_signal` asks it to stop cleanly.
    pub fn start(
        directory: &RunDirectory,
        name: &str,
        command: &mut Command,
        stop_signal: Signal,
    ) -> Result<Self> {
        let log = directory.path().join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).context("cannot write a log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share a log file")?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let pid_file = directory.path().join(format!("{name}.pid"));
        let started =
            Self { name: name.to_owned(), child, stop_signal, pid_file, log, _directory: directory.clone() };
        fs::write(&started.pid_file, format!("{}\n", started.id())).context("cannot write a process id")?;
        Ok(started)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The last 4,000 bytes of its log.
    pub fn log_tail(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(bytes.rchunks(4000).next().unwrap_or_default()).into_owned()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        signal::kill(Pid::from_raw(i32::try_from(self.id())?), signal)
            .with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Waits until `is_ready`, asked every few milliseconds, answers with something. When the process ends before, or is not
    /// ready within `deadline`, the error holds the end of its log.
    pub fn wait_until<T>(
        &mut self,
        deadline: Duration,
        mut is_ready: impl FnMut() -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(answer) = is_ready() {
                return Ok(answer);
            }
            let why = match self.child.try_wait()? {
                Some(status) => format!("ended with {status} before it was ready"),
                None if Instant::now() > end => format!("was not ready within {deadline:?}"),
                None => {
                    thread::sleep(POLL);
                    continue;
                }
            };
            bail!("{} {why}:\n{}", self.name, self.log_tail());
        }
    }

    /// Waits until it has ended by itself, at most for `deadline`; `None` when it still runs then.
    pub fn wait(&mut self, deadline: Duration) -> Result<Option<ExitStatus>> {
        let end = Instant::now() + deadline;
        loop {
            let status = self.child.try_wait()?;
            if status.is_some() || Instant::now() > end {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
    }

    /// Kills it at once, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.signal(self.stop_signal));
            if !matches!(self.wait(GRACE), Ok(Some(_))) {
                drop(self.kill());
            }
        }
        drop(fs::remove_file(&self.pid_file));
    }
}
