//! Whether the worker can do its work, part by part.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_messaging::log_budget::LogBudget;
use serde::Serialize;
use tokio::sync::watch;

/// The parts that must all be in order for the worker to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Part {
    /// The connection to NATS stands.
    Nats,
    /// The database answers.
    Postgres,
    /// The schema is the one this version needs.
    Migrations,
    /// Events are being read.
    Consumer,
    /// The process can open files and connections.
    Descriptors,
    /// The process is not about to stop.
    Running,
}

impl Part {
    pub(crate) const ALL: [Self; 6] =
        [Self::Nats, Self::Postgres, Self::Migrations, Self::Consumer, Self::Descriptors, Self::Running];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Postgres => "postgres",
            Self::Migrations => "migrations",
            Self::Consumer => "consumer",
            Self::Descriptors => "descriptors",
            Self::Running => "running",
        }
    }
}

/// The most log lines a minute about parts that become ready or are so no longer.
const LINES_PER_MINUTE: u32 = 20;

/// The state of every part, shared.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    parts: watch::Sender<BTreeMap<Part, bool>>,
    log: Arc<LogBudget>,
}

impl Readiness {
    /// Nothing is ready yet.
    pub(crate) fn new() -> Self {
        for part in Part::ALL {
            crate::metrics::ready(part.as_str(), false);
        }
        let parts = watch::Sender::new(Part::ALL.map(|part| (part, false)).into());
        Self { parts, log: Arc::new(LogBudget::new(LINES_PER_MINUTE)) }
    }

    pub(crate) fn set(&self, part: Part, ready: bool) {
        self.take(part, ready, None);
    }

    /// As [`set`](Self::set); why the part is not ready stands in the log.
    pub(crate) fn judge(&self, part: Part, found: Result<(), String>) {
        self.take(part, found.is_ok(), found.err());
    }

    fn take(&self, part: Part, ready: bool, error: Option<String>) {
        if !self.parts.send_if_modified(|parts| parts.insert(part, ready) != Some(ready)) {
            return;
        }
        crate::metrics::ready(part.as_str(), ready);
        // A part may come and go every second.
        match self.log.line() {
            Some(line) if ready => {
                tracing::info!(
                    part = part.as_str(),
                    left_out = line.left_out,
                    "a part of the worker is ready"
                );
            }
            Some(line) => {
                tracing::warn!(
                    part = part.as_str(),
                    error,
                    left_out = line.left_out,
                    "a part of the worker is not ready"
                );
            }
            None => {}
        }
    }

    /// Every part's state.
    pub(crate) fn parts(&self) -> BTreeMap<Part, bool> {
        self.parts.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    /// The line for the log.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_part_that_comes_and_goes_has_few_lines() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let readiness = Readiness::new();
            for number in 0..501 {
                let found = if number % 2 == 0 { Ok(()) } else { Err("it refuses".to_owned()) };
                readiness.judge(Part::Postgres, found);
            }
            assert_eq!(readiness.parts().get(&Part::Postgres), Some(&true), "the state is not left out");
        });
        let told = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(told.lines().count(), usize::try_from(LINES_PER_MINUTE).unwrap());
        assert!(told.contains("it refuses"), "{told}");
    }
}
