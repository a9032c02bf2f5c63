//! Whether the worker can do its work, part by part.

use std::collections::BTreeMap;

use serde::Serialize;
use tokio::sync::watch;

/// What must be in order for the worker to be ready.
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

/// The state of every part, shared.
#[derive(Debug, Clone)]
pub(crate) struct Readiness(watch::Sender<BTreeMap<Part, bool>>);

impl Readiness {
    /// Nothing is ready yet.
    pub(crate) fn new() -> Self {
        for part in Part::ALL {
            crate::metrics::ready(part.as_str(), false);
        }
        Self(watch::Sender::new(Part::ALL.map(|part| (part, false)).into()))
    }

    pub(crate) fn set(&self, part: Part, ready: bool) {
        let changed = self.0.send_if_modified(|parts| parts.insert(part, ready) != Some(ready));
        if changed {
            crate::metrics::ready(part.as_str(), ready);
            if ready {
                tracing::info!(part = part.as_str(), "ready");
            } else {
                tracing::warn!(part = part.as_str(), "not ready");
            }
        }
    }

    /// Every part's state.
    pub(crate) fn parts(&self) -> BTreeMap<Part, bool> {
        self.0.borrow().clone()
    }
}
