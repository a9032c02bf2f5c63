//! The queue between the log and standard error. Logging never waits: a separate thread writes, and while nobody reads what
//! it writes, lines beyond a bound are dropped and counted. When reading goes on, one line says how many are missing.
//!
//! `tracing-appender` has such a queue as well, but bounds it by the number of lines, whatever their size, and does not say in
//! the log that lines are missing.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::metrics;

/// The most bytes in the queue, some thousands of lines. The writer may hold as many.
const CAPACITY: usize = 1 << 20;
/// How long the process waits at its end for the queue to be written.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the writer waits when standard error is non-blocking and full.
const FULL: Duration = Duration::from_millis(10);

/// The queue. Clones share it.
#[derive(Clone)]
pub(crate) struct LogQueue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Signals that a line was queued, or that all lines are written.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whole lines, in their order.
    waiting: Vec<u8>,
    writing: bool,
    /// Lines that were dropped since the log last said so.
    dropped: u64,
}

impl LogQueue {
    /// Starts the thread that writes to standard error.
    pub(crate) fn start() -> io::Result<Self> {
        // The queue has its own handle: the standard library locks its one during a write, and every other writer would wait.
        match io::stderr().as_fd().try_clone_to_owned() {
            Ok(own) => Self::to(File::from(own)),
            Err(_) => Self::to(io::stderr()),
        }
    }

    fn to(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let writer = Arc::clone(&shared);
        thread::Builder::new().name("log".to_owned()).spawn(move || writer.write(sink))?;
        Ok(Self(shared))
    }

    /// Takes one line, with its end, or drops it.
    fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.waiting.len().saturating_add(line.len()) > CAPACITY {
            state.dropped = state.dropped.saturating_add(1);
            drop(state);
            metrics::log_lines_dropped(1);
        } else {
            state.waiting.extend_from_slice(line);
            self.0.changed.notify_all();
        }
    }

    /// Takes one line as it is, whether or not the log was started.
    pub(crate) fn line(&self, text: &str) {
        self.push(format!("{text}\n").as_bytes());
    }

    /// Waits until the queue is written, for a second at most.
    pub(crate) fn flush(&self) {
        let state = self.0.lock();
        let unwritten = |state: &mut State| state.writing || !state.waiting.is_empty();
        // What is not written by then is lost.
        drop(self.0.changed.wait_timeout_while(state, FLUSH, unwritten));
    }

    /// Logs panics, rather than let the thread that panics write to standard error.
    pub(crate) fn take_panics(&self) {
        let queue = self.clone();
        std::panic::set_hook(Box::new(move |panic| {
            let message = panic.payload_as_str().unwrap_or("without a message");
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let backtrace = Backtrace::capture();
            let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
            if tracing::dispatcher::has_been_set() {
                tracing::error!(
                    error = message,
                    panic.location = place,
                    panic.backtrace = backtrace,
                    "a task panicked"
                );
            } else {
                queue.line(&format!("muster-worker: panicked at {place}: {message}"));
            }
        }));
    }
}

/// Takes each line, which the formatter writes at once, and never fails.
impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the count for later when there is hardly room for the line with it. True when it did.
    fn put_back(&self, dropped: u64) -> bool {
        let mut state = self.lock();
        let is_full = state.waiting.len() > CAPACITY / 2;
        if is_full {
            state.dropped = state.dropped.saturating_add(dropped);
        }
        is_full
    }

    fn write(&self, mut sink: impl Write) {
        let mut lines = Vec::new();
        loop {
            let dropped = {
                let mut state = self.lock();
                state.writing = false;
                self.changed.notify_all();
                let mut state = self
                    .changed
                    .wait_while(state, |state| state.waiting.is_empty())
                    .unwrap_or_else(PoisonError::into_inner);
                std::mem::swap(&mut state.waiting, &mut lines);
                state.writing = true;
                std::mem::take(&mut state.dropped)
            };
            let unwritten = write_all(&mut sink, &lines);
            lines.clear();
            if unwritten > 0 {
                // Whoever reads is gone, or the disk is full. It is said when a line is taken again.
                let mut state = self.lock();
                state.dropped = state.dropped.saturating_add(dropped).saturating_add(unwritten);
                drop(state);
                metrics::log_lines_dropped(unwritten);
            } else if dropped > 0 && !self.put_back(dropped) {
                tracing::warn!(
                    log.lines_dropped = dropped,
                    "lines of the log were dropped: they were not read fast enough"
                );
            }
        }
    }
}

/// Writes all lines, and returns the number of those that were not written.
fn write_all(sink: &mut impl Write, mut lines: &[u8]) -> u64 {
    while !lines.is_empty() {
        match sink.write(lines) {
            Ok(0) => break,
            Ok(written) => lines = lines.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL),
            Err(_) => break,
        }
    }
    let ends = lines.iter().filter(|byte| **byte == b'\n').count();
    u64::try_from(ends).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// A sink that hands on what it gets, and waits where nobody takes it.
    struct Pipe(mpsc::SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read_and_memory_is_bounded() {
        let (pipe, reader) = mpsc::sync_channel(0);
        let queue = LogQueue::to(Pipe(pipe)).unwrap();
        let line = "x".repeat(1023);
        queue.line(&line);
        while !queue.0.lock().writing {
            thread::yield_now();
        }
        let begun = Instant::now();
        for _ in 0..10_000 {
            queue.line(&line);
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        let state = queue.0.lock();
        assert!(state.waiting.len() <= CAPACITY && state.dropped == 10_000 - 1024, "{}", state.dropped);
        drop(state);
        let begun = Instant::now();
        queue.flush();
        assert!(begun.elapsed() < FLUSH * 2, "{:?}", begun.elapsed());
        // Whole lines come, those that were first.
        let read = reader.recv().unwrap();
        assert!(read.ends_with(b"x\n") && read.len() % 1024 == 0);
    }

    #[test]
    fn the_log_queue_writes_its_lines_and_counts_those_it_drops() {
        let (pipe, reader) = mpsc::sync_channel(1000);
        let queue = LogQueue::to(Pipe(pipe)).unwrap();
        for n in 0..100 {
            queue.line(&n.to_string());
        }
        queue.flush();
        let read: Vec<u8> = reader.try_iter().flatten().collect();
        let wanted: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(String::from_utf8(read).unwrap(), wanted);
        drop(reader);
        queue.line("one");
        queue.line("two");
        queue.flush();
        assert_eq!(queue.0.lock().dropped, 2);
    }
}
