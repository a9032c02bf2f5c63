//! The log: JSON lines for machines, or text for people, on standard error.
//!
//! Each line says by itself what happened and carries fields with dotted names. Persons' ids stand in it as pseudonyms only
//! ([`muster_domain::PseudonymKey`]); tokens, URLs with passwords and payloads never do.

use tracing::Level;
use tracing_subscriber::filter::{FilterExt, FilterFn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::settings::{Log, SettingsError};
use crate::traces::Exporting;

/// Starts the log, and hands spans to `traces` where there is a collector.
pub(crate) fn start(log: &Log, traces: Option<&Exporting>) -> Result<(), SettingsError> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| {
        SettingsError::new(format!("log.filter: {:?} is not a filter: {error}", log.filter))
    })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
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
