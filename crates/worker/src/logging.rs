//! The log: JSON lines for machines, or text for people, on standard error.

use tracing_subscriber::EnvFilter;

use crate::settings::{Log, SettingsError};

pub(crate) fn start(log: &Log) -> Result<(), SettingsError> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|error| {
        SettingsError::new(format!("log.filter: {:?} is not a filter: {error}", log.filter))
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if log.json {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        builder.try_init()
    };
    started.map_err(|error| SettingsError::new(format!("the log cannot be started: {error}")))
}
