use std::fs::{self, File, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// How long a process may take to end when asked to, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How long the start of a server may take; recovery after a kill is part of it.
const START: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// An address of this machine whose port nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?.local_addr()?)
}

/// Asks for a path by HTTP; answers the status and the body. It fails when there is no answer within five seconds.
pub fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let request = ureq::get(format!("http://{address}{path}")).config().http_status_as_error(false);
    let mut answer = request.timeout_global(Some(Duration::from_secs(5))).build().call()?;
    Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
}

/// A temporary directory that holds all of a run: data, certificates, logs and the ids of its processes. When the last
/// clone is dropped, or the process dies in whatever way, those processes are stopped and the directory is removed.
#[derive(Debug, Clone)]
pub struct RunDirectory(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    keeper: Child,
}

impl RunDirectory {
    /// Makes a new one among the system's temporary files.
    pub fn create() -> Result<Self> {
        // Others may pass through but not list: PostgreSQL runs as another user when this process is root's.
        let directory = tempfile::Builder::new()
            .prefix("muster-")
            .permissions(Permissions::from_mode(0o711))
            .tempdir()
            .context("cannot make a temporary directory: is TMPDIR writable?")?;
        let keeper = Command::new("/bin/sh")
            .args(["-c", include_str!("keeper.sh"), "muster-keeper"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot run /bin/sh")?;
        Ok(Self(Arc::new(Kept { path: directory.keep(), keeper })))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Writes a file that only this user may read, and answers its path.
    pub fn secret_file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        write_secret(&path, content)?;
        Ok(path)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// Writes a file that only its owner may read.
pub(super) fn write_secret(path: &Path, content: &str) -> Result<()> {
    let write = || {
        fs::write(path, "")?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        fs::write(path, content)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// A server process of a run, stopped when dropped. In its own process group Ctrl-C in the terminal does not reach it.
#[derive(Debug)]
pub struct Process {
    /// The file that its output goes to.
    pub log: PathBuf,
    name: String,
    pid: PathBuf,
    child: Child,
    stop: Signal,
    // Held so that the directory outlives what runs in it.
    _directory: RunDirectory,
}

impl Process {
    /// Starts `command` under `name`, with its output appended to `<name>.log`. `stop` asks it to stop cleanly.
    pub fn start(directory: &RunDirectory, name: &str, command: &mut Command, stop: Signal) -> Result<Self> {
        let log = directory.path().join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).context("cannot write a log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share a log file")?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let (id, named) = (child.id(), log.with_extension("pid"));
        let pid = if named.exists() { log.with_extension(format!("{id}.pid")) } else { named };
        fs::write(&pid, format!("{id}\n")).context("cannot write a process id")?;
        Ok(Self { name: name.to_owned(), pid, child, stop, log, _directory: directory.clone() })
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

    /// Waits until `is_ready` answers with something; if that does not come about, the error holds the end of its log.
    pub fn wait_until<T>(&mut self, deadline: Duration, is_ready: impl Fn() -> Option<T>) -> Result<T> {
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

    /// Waits until it answers HTTP requests for a path with 200.
    pub fn wait_until_ok(&mut self, deadline: Duration, address: SocketAddr, path: &str) -> Result<()> {
        self.wait_until(deadline, || matches!(get(address, path), Ok((200, _))).then_some(()))
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
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).with_context(|| format!("cannot kill {}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.signal(self.stop));
            if !matches!(self.wait(GRACE), Ok(Some(_))) {
                drop(self.kill());
            }
        }
        drop(fs::remove_file(&self.pid));
    }
}

/// A private server on a free port of 127.0.0.1, which can be stopped and started again, and is stopped when dropped.
#[derive(Debug)]
pub struct Restartable<O> {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// What it was started with.
    pub options: O,
    pub(super) name: String,
    pub(super) directory: RunDirectory,
    // `None` while it is stopped.
    process: Option<Process>,
}

impl<O> Restartable<O> {
    /// One that has not been started yet.
    pub(super) fn new(directory: &RunDirectory, name: &str, options: O) -> Self {
        Self { port: 0, options, name: name.to_owned(), directory: directory.clone(), process: None }
    }

    /// Runs its program and waits until `is_ready`, which is given the process id, answers with something.
    pub(super) fn run<T>(&mut self, command: &mut Command, is_ready: impl Fn(u32) -> Option<T>) -> Result<T> {
        ensure!(self.process.is_none(), "{} runs: stop or kill it first", self.name);
        // SIGINT is PostgreSQL's fast shutdown: sessions are cut off, data is flushed.
        let mut process = Process::start(&self.directory, &self.name, command, Signal::SIGINT)?;
        let id = process.id();
        let answer = process.wait_until(START, || is_ready(id))?;
        self.process = Some(process);
        Ok(answer)
    }

    /// Where its data lies.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Makes it read its configuration and certificates again.
    pub fn reload(&self) -> Result<()> {
        self.process.as_ref().with_context(|| format!("{} is stopped", self.name))?.signal(Signal::SIGHUP)
    }

    /// Stops it cleanly; the data stays.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Kills it with SIGKILL, as a crash would; the data stays.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }
}
