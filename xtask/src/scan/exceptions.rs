//! What may be found: one file, each exception with its reason and its end.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Deserialize;
use time::Date;
use time::macros::format_description;

use super::Scan;
use super::sarif::Finding;

/// Where the exceptions stand.
pub(super) const FILE: &str = "infra/scan-exceptions.toml";
/// What cargo-deny is told; it takes no date, so that of each advisory it ignores stands with the exceptions.
pub(super) const DENY: &str = "deny.toml";
/// The scan of the exceptions that cargo-deny makes.
const ADVISORIES: &str = "advisories";

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
    /// The scan, as `--only` names it, or `advisories` for what cargo-deny ignores.
    scan: String,
    /// The scanner's name of the rule.
    rule: String,
    /// The file, by the end of its path.
    #[serde(default)]
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
            let known = exception.scan == ADVISORIES || Scan::from_str(&exception.scan, false).is_ok();
            ensure!(known, "{}: there is no scan {}", exception.rule, exception.scan);
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
        expired
            .map(|(it, expires)| {
                format!("{} of {} in {FILE} held until {expires}: look at it again", it.rule, it.scan)
            })
            .collect()
    }

    /// In what the advisories here and those that cargo-deny ignores differ: `deny` is the text of its configuration.
    pub(super) fn unlike(&self, deny: &str) -> Result<Vec<String>> {
        let deny: toml::Table = toml::from_str(deny).with_context(|| format!("{DENY} is no TOML"))?;
        let ignored = deny.get("advisories").and_then(|it| it.get("ignore")).and_then(toml::Value::as_array);
        let ids = ignored.into_iter().flatten().map(|it| {
            let id = it.as_str().or_else(|| it.get("id")?.as_str());
            id.with_context(|| format!("{DENY} ignores what is no advisory: {it:?}"))
        });
        let ignored: BTreeSet<&str> = ids.collect::<Result<_>>()?;
        let advisories = self.0.iter().filter(|(it, _)| it.scan == ADVISORIES);
        let dated: BTreeSet<&str> = advisories.map(|(it, _)| it.rule.as_str()).collect();
        let undated = ignored.difference(&dated).map(|id| format!("{id} of {DENY} has no end in {FILE}"));
        let unused = dated.difference(&ignored).map(|id| format!("{id} of {FILE} is not ignored in {DENY}"));
        Ok(undated.chain(unused).collect())
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
        let whole = "[[exception]]\nscan = \"dockerfile\"\nrule = \"r\"\npath = \"p\"\n";
        let right = format!("{whole}reason = \"r\"\nexpires = \"2026-12-31\"");
        assert!(Exceptions::parse(&right).is_ok());
        assert!(Exceptions::parse(&right.replace("dockerfile", "dockerfiles")).is_err());
        assert!(Exceptions::parse(&format!("{whole}reason = \"\"\nexpires = \"2026-12-31\"")).is_err());
        assert!(Exceptions::parse(&format!("{whole}reason = \"r\"")).is_err());
        assert!(Exceptions::parse(&format!("{whole}reason = \"r\"\nexpires = \"never\"")).is_err());
    }

    #[test]
    fn an_ignored_advisory_without_end_is_found() {
        let deny = |ignored: &str| format!("[advisories]\nignore = [{ignored}]\n");
        let exceptions = Exceptions::parse(
            "[[exception]]\nscan = \"advisories\"\nrule = \"RUSTSEC-2025-0134\"\nreason = \"r\"\n\
             expires = \"2026-12-31\"\n",
        )
        .unwrap();
        assert!(
            exceptions.unlike(&deny("{ id = \"RUSTSEC-2025-0134\", reason = \"r\" }")).unwrap().is_empty()
        );
        let problems = exceptions.unlike(&deny("\"RUSTSEC-2025-0134\", \"RUSTSEC-2024-0001\"")).unwrap();
        assert_eq!(problems, ["RUSTSEC-2024-0001 of deny.toml has no end in infra/scan-exceptions.toml"]);
        assert_eq!(exceptions.unlike(&deny("")).unwrap().len(), 1);
        assert!(exceptions.unlike(&deny("{ crate = \"a\" }")).is_err());
        assert_eq!(exceptions.expired(date!(2027 - 01 - 01)).len(), 1);
    }

    #[test]
    fn what_this_repository_ignores_has_an_end() {
        let root = crate::cargo::root();
        let exceptions = Exceptions::read(&root.join(FILE)).unwrap();
        let problems = exceptions.unlike(&fs::read_to_string(root.join(DENY)).unwrap()).unwrap();
        assert!(problems.is_empty(), "{problems:?}");
    }
}
