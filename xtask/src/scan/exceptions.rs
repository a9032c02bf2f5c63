//! Every exception has a reason and a day on which it expires, and none is past that day.
//!
//! Trivy's file has a field for both; cargo-deny has one for the reason, which ends with the day. `scans.sh` lets no other scanner
//! make exceptions.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use time::Date;
use time::macros::format_description;

use crate::description::{list, text};

const TRIVY: &str = ".trivyignore.yaml";
const DENY: &str = "deny.toml";
const VEX: &str = "infra/vex/muster.openvex.json";

/// What is wrong with the exceptions of the repository at `root`.
pub(super) fn problems(root: &Path, today: Date) -> Result<Vec<String>> {
    let read =
        |file: &str| fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {file}"));
    let trivy: Value = serde_norway::from_str(&read(TRIVY)?).context(TRIVY)?;
    let deny: Value = toml::from_str(&read(DENY)?).context(DENY)?;
    let vex: Value = serde_json::from_str(&read(VEX)?).context(VEX)?;
    let mut problems = Vec::new();
    let mut check = |file: &str, id: &str, reason: &str, expires: &str| {
        let expires = Date::parse(expires, format_description!("[year]-[month]-[day]")).ok();
        if reason.trim().is_empty() || expires.is_none_or(|day| day <= today) {
            problems
                .push(format!("{file}: {id} has no reason, or no day on which it expires, or is past it"));
        }
    };
    for it in trivy.as_object().into_iter().flat_map(|kinds| kinds.values()).flat_map(|kind| list(kind, "")) {
        check(TRIVY, text(it, "/id"), text(it, "/statement"), text(it, "/expired_at"));
    }
    let advisories = list(&deny, "/advisories/ignore");
    for it in advisories {
        let (reason, expires) = text(it, "/reason").rsplit_once("; expires ").unwrap_or_default();
        check(DENY, it.as_str().unwrap_or(text(it, "/id")), reason, expires);
    }
    // Trivy leaves out what VEX says does not affect Muster.
    for it in list(&vex, "/statements") {
        let id = text(it, "/vulnerability/name");
        if !advisories.iter().any(|advisory| text(advisory, "/id") == id) {
            problems.push(format!("{VEX}: {id} is not in {DENY}, where it expires"));
        }
    }
    Ok(problems)
}
