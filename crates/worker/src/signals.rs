//! Signals that ask the process to end. Each of them that would end it at once, by the system's default, is taken instead:
//! serving drains, and whatever else runs ends with the exit code that shells give for the signal.
//!
//! A process with the id 1, as in a container, does not even end by default. Two kinds are left alone: `SIGKILL`, which cannot
//! be taken, and signals of a defect (`SIGSEGV`, `SIGABRT` and others). `SIGPIPE` is ignored by Rust.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use rustix::process::Signal as Known;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

/// A signal that comes this soon after the first is the same request: a closed terminal sends it twice, and so does a
/// supervisor that forwards a signal which its whole group received.
const SAME: Duration = Duration::from_secs(1);

const ENDING: [(&str, Known); 11] = [
    ("SIGHUP", Known::HUP),
    ("SIGINT", Known::INT),
    ("SIGQUIT", Known::QUIT),
    ("SIGTERM", Known::TERM),
    ("SIGUSR1", Known::USR1),
    ("SIGUSR2", Known::USR2),
    ("SIGALRM", Known::ALARM),
    ("SIGVTALRM", Known::VTALARM),
    ("SIGPROF", Known::PROF),
    ("SIGXCPU", Known::XCPU),
    ("SIGIO", Known::IO),
];

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received(i32);

impl Received {
    /// As shells have it: 128 and the signal's number.
    pub(crate) fn exit_code(self) -> u8 {
        u8::try_from(self.0.saturating_add(128)).unwrap_or(u8::MAX)
    }
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match ENDING.iter().find(|(_, known)| known.as_raw() == self.0) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

/// The signals, from when they are taken on.
pub(crate) struct Signals {
    taken: Vec<(i32, Signal)>,
    first: Option<Instant>,
}

impl Signals {
    /// Takes the signals. One that comes earlier ends the process.
    pub(crate) fn take() -> io::Result<Self> {
        // A file that may not grow any more is for whoever writes it to see: the log, which counts what it loses.
        drop(signal(SignalKind::from_raw(Known::XFSZ.as_raw()))?);
        let named = ENDING.iter().map(|(_, known)| known.as_raw());
        let taken = named
            .chain(unnamed())
            .map(|number| Ok((number, signal(SignalKind::from_raw(number))?)))
            .collect::<io::Result<_>>()?;
        Ok(Self { taken, first: None })
    }

    /// Waits for the next.
    pub(crate) async fn next(&mut self) -> Received {
        let number = poll_fn(|cx| {
            let came = self.taken.iter_mut().find_map(|(number, signal)| {
                matches!(signal.poll_recv(cx), Poll::Ready(Some(()))).then_some(*number)
            });
            came.map_or(Poll::Pending, Poll::Ready)
        });
        let received = Received(number.await);
        self.first.get_or_insert_with(Instant::now);
        received
    }

    /// Waits for a second request to end, which is not the first one sent twice.
    pub(crate) async fn insists(&mut self) -> Received {
        loop {
            let first = self.first;
            let received = self.next().await;
            if first.is_some_and(|first| first.elapsed() > SAME) {
                return received;
            }
        }
    }
}

/// The signals that only Linux has: a coprocessor's fault, a power failure, and the real-time signals, some of which stop
/// containers of systemd's. Up to 34 the C libraries use them themselves.
#[cfg(target_os = "linux")]
fn unnamed() -> impl Iterator<Item = i32> {
    [Known::STKFLT, Known::POWER].into_iter().map(Known::as_raw).chain(35..=64)
}

#[cfg(not(target_os = "linux"))]
fn unnamed() -> impl Iterator<Item = i32> {
    std::iter::empty()
}
