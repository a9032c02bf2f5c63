//! The log: JSON lines for machines, or text for people, on standard error.
//!
//! Each line says by itself what happened and carries fields with dotted names. Persons' ids stand in it as pseudonyms only
//! ([`muster_domain::PseudonymKey`]); tokens, URLs with passwords and payloads never do.

pub(crate) mod queue;

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{FilterExt, FilterFn, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::queue::LogQueue;
use crate::settings::{Log, SettingsError};
use crate::traces::Exporting;

/// The default level of serving.
const SERVING: LevelFilter = LevelFilter::INFO;
/// The default level of a command whose result is what it prints.
const ONE_SHOT: LevelFilter = LevelFilter::WARN;

/// Starts the log of serving, and hands spans to `traces` where there is a collector.
pub(crate) fn serving(log: &Log, queue: &LogQueue, traces: Option<&Exporting>) -> Result<(), SettingsError> {
    start(log, queue, SERVING, traces)
}

/// Starts the log of a command that does one thing and ends.
pub(crate) fn one_shot(log: &Log, queue: &LogQueue) -> Result<(), SettingsError> {
    start(log, queue, ONE_SHOT, None)
}

fn start(
    log: &Log,
    queue: &LogQueue,
    unless_named: LevelFilter,
    traces: Option<&Exporting>,
) -> Result<(), SettingsError> {
    let queue = queue.clone();
    let filter = log.filter.targets(unless_named);
    let lines = tracing_subscriber::fmt::layer()
        // It would write its own errors to standard error itself, and wait there.
        .log_internal_errors(false)
        .with_writer(move || queue.clone());
    let lines = if log.json {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    } else {
        lines.boxed()
    };
    // Below that level the libraries tell what passes through them: statements' values, messages' contents.
    let no_contents =
        FilterFn::new(|metadata| metadata.target().starts_with("muster") || *metadata.level() <= Level::INFO);
    tracing_subscriber::registry()
        .with(traces.map(Exporting::layer))
        .with(lines.with_filter(filter.and(no_contents)))
        .try_init()
        .map_err(|error| SettingsError::new(format!("the log cannot be started: {error}")))
}
