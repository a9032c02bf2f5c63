//! What may be found: one file, each exception with its reason and its end.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use time::Date;
use time::macros::format_description;

use super::sarif::Finding;

/// Where the exceptions stand.
pub(super) const FILE: &str = "infra/scan-exceptions.toml";

pub(super) struct Exceptions(Vec<(Exception, Date)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    exception: Vec<Exception>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exception {
    /// The scan, as `--only` names it.
    scan: String,
    /// The scanner's name of the rule.
    rule: String,
    /// The file, by the end of its path.
    path: String,
    /// Words of the finding's message, to except no more than one means.
    #[serde(default)]
    message: String,
    reason: String,
    /// The last day on which it holds.
    expires: String,
}

impl Exceptions {
    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{} is wrong", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file: File = toml::from_str(text)?;
        let dated = file.exception.into_iter().map(|exception| {
            ensure!(!exception.reason.trim().is_empty(), "{} has no reason", exception.rule);
            let form = format_description!("[year]-[month]-[day]");
            let expires = Date::parse(&exception.expires, form)
                .with_context(|| format!("{}: {:?} is no date", exception.rule, exception.expires))?;
            Ok((exception, expires))
        });
        dated.collect::<Result<_>>().map(Self)
    }

    /// Those that held no longer than until before `today`.
    pub(super) fn expired(&self, today: Date) -> Vec<String> {
        let expired = self.0.iter().filter(|(_, expires)| *expires < today);
        expired.map(|(it, expires)| format!("{} of {} ({FILE}) on {expires}", it.rule, it.scan)).collect()
    }

    pub(super) fn covers(&self, scan: &str, finding: &Finding) -> bool {
        self.0.iter().any(|(it, _)| {
            it.scan == scan
                && it.rule == finding.rule
                && finding.path.ends_with(&it.path)
                && finding.message.contains(&it.message)
        })
    }
}

#[cfg(test)]
mod tests {
    use time::macros::date;

    use super::*;

    #[test]
    fn an_exception_covers_what_it_names_until_its_day() {
        let text = "[[exception]]\nscan = \"manifests\"\nrule = \"KSV-1\"\npath = \"production.yaml\"\n\
                    reason = \"r\"\nexpires = \"2026-12-31\"\n";
        let exceptions = Exceptions::parse(text).unwrap();
        let finding = |rule: &str, path: &str| Finding {
            rule: rule.to_owned(),
            path: path.to_owned(),
            line: 1,
            message: String::new(),
        };
        assert!(exceptions.covers("manifests", &finding("KSV-1", "a/production.yaml")));
        assert!(!exceptions.covers("dockerfile", &finding("KSV-1", "a/production.yaml")));
        assert!(!exceptions.covers("manifests", &finding("KSV-2", "a/production.yaml")));
        assert!(!exceptions.covers("manifests", &finding("KSV-1", "a/development.yaml")));
        assert!(exceptions.expired(date!(2026 - 12 - 31)).is_empty());
        assert_eq!(exceptions.expired(date!(2027 - 01 - 01)).len(), 1);
    }

    #[test]
    fn an_exception_without_reason_or_end_is_refused() {
        let whole = "[[exception]]\nscan = \"s\"\nrule = \"r\"\npath = \"p\"\n";
        assert!(Exceptions::parse(&format!("{whole}reason = \"\"\nexpires = \"2026-12-31\"")).is_err());
        assert!(Exceptions::parse(&format!("{whole}reason = \"r\"")).is_err());
        assert!(Exceptions::parse(&format!("{whole}reason = \"r\"\nexpires = \"never\"")).is_err());
    }
}
