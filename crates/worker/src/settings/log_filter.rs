//! The filter of the log: a level, and other levels for single targets.
//!
//! The library's own syntax takes a misspelt level for the name of a target, and shows nothing else then.

use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, Targets};

/// This target writes several lines at level info for each attempt to reconnect, every other second while a server is away.
/// The worker itself says when a connection is lost and when it stands again.
const TALKATIVE: &str = "async_nats";

/// A filter as it was configured. Targets that it does not name have the default level.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LogFilter {
    level: Option<LevelFilter>,
    targets: Vec<(String, LevelFilter)>,
}

impl LogFilter {
    /// The filter, with a level for the targets that it does not name. A filter without a level leaves out the lines about each
    /// attempt to connect.
    pub(crate) fn targets(&self, unless_named: LevelFilter) -> Targets {
        let filter = Targets::new().with_default(self.level.unwrap_or(unless_named));
        let filter =
            if self.level.is_none() { filter.with_target(TALKATIVE, LevelFilter::WARN) } else { filter };
        filter.with_targets(self.targets.clone())
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        let mut filter = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || LogFilterError(part.to_owned());
            let level = |level: &str| match level.to_ascii_lowercase().as_str() {
                "off" | "error" | "warn" | "info" | "debug" | "trace" => level.parse().map_err(|_| wrong()),
                _ => Err(wrong()),
            };
            match part.split_once('=') {
                None if filter.level.is_none() => filter.level = Some(level(part)?),
                Some((target, at)) => {
                    let (target, level) = (target.trim(), level(at.trim())?);
                    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
                    let named = filter.targets.iter().any(|(named, _)| named == target);
                    if target.is_empty() || !target.chars().all(is_name) || named {
                        return Err(wrong());
                    }
                    filter.targets.push((target.to_owned(), level));
                }
                None => return Err(wrong()),
            }
        }
        Ok(filter)
    }
}

/// A part of a filter that is wrong.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is neither a level nor target=level, or is there twice: write off, error, warn, info, debug or trace, and for \
     single targets muster_worker=debug, with commas between"
)]
pub(crate) struct LogFilterError(String);

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_log_target_without_a_level_has_the_default() {
        let shown = |filter: &str, target: &str, level: Level| {
            filter.parse::<LogFilter>().unwrap().targets(LevelFilter::INFO).would_enable(target, &level)
        };
        for default in ["", " ", ",", "muster_worker=debug", "info,", " info , muster_worker = DEBUG "] {
            assert!(shown(default, "muster_storage", Level::INFO), "{default:?}");
            assert!(!shown(default, "muster_storage", Level::DEBUG), "{default:?}");
        }
        assert!(shown("muster_worker=debug", "muster_worker::serve", Level::DEBUG));
        assert!(!shown("warn,muster_worker=debug", "muster_storage", Level::INFO));
        assert!(!shown("off", "muster_worker", Level::ERROR));
    }

    #[test]
    fn connection_attempts_are_logged_where_the_filter_asks() {
        let shown = |filter: &str, level: Level| {
            let filter = filter.parse::<LogFilter>().unwrap().targets(LevelFilter::INFO);
            filter.would_enable("async_nats::connector", &level)
        };
        for filter in ["", "muster_worker=debug"] {
            assert!(shown(filter, Level::WARN) && !shown(filter, Level::INFO), "{filter}");
        }
        for filter in ["info", "debug", "async_nats=info", "async_nats::connector=debug"] {
            assert!(shown(filter, Level::INFO), "{filter}");
        }
        assert!(!shown("error", Level::WARN));
    }

    #[test]
    fn a_wrong_log_filter_is_refused_with_its_part() {
        for (filter, part) in [
            ("nonsense", "nonsense"),
            ("inof,muster_worker=debug", "inof"),
            ("info,muster=loud", "muster=loud"),
            ("info,muster=", "muster="),
            ("info,=debug", "=debug"),
            ("info,debug", "debug"),
            ("muster=info,muster=debug", "muster=debug"),
            ("info;muster=debug", "info;muster=debug"),
            ("[span{id=1}]=debug", "[span{id=1}]=debug"),
            ("5", "5"),
            ("info muster=debug", "info muster=debug"),
        ] {
            let said = filter.parse::<LogFilter>().unwrap_err().to_string();
            assert!(said.contains(&format!("{part:?}")), "{filter}: {said}");
        }
    }
}
