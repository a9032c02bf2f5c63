//! Versions of servers, and which of them Muster works with.

use std::fmt;

/// A server's version: its first three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub [u32; 3]);

impl Version {
    /// The dotted number that `text` begins with, such as the 15.20 of `15.20 (Debian 15.20-0)`. A number that is missing is 0.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_start_matches('v');
        let number = text.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = number.split('.').map(str::parse::<u32>);
        let first = parts.next()?.ok()?;
        let mut rest = || parts.next().and_then(Result::ok).unwrap_or(0);
        Some(Self([first, rest(), rest()]))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        write!(f, "{major}.{minor}.{patch}")
    }
}

/// Which versions of a server Muster works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionFloor {
    /// The server.
    pub server: &'static str,
    /// Below this one a promise does not hold.
    pub least: Version,
    /// Why that is.
    pub why_least: &'static str,
    /// Below this one it works, but should not be used.
    pub advised: Version,
    /// Why that is.
    pub why_advised: &'static str,
}

/// What is made of a server's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionVerdict {
    /// It is in order.
    Supported,
    /// It works, but should not be used; the text says why and what to do.
    Unadvised(String),
    /// A promise does not hold with it; the text says which and what to do.
    TooOld(String),
}

impl VersionFloor {
    /// Judges the version that a server reports. One that cannot be read counts as not advised.
    #[must_use]
    pub fn judge(&self, told: &str) -> VersionVerdict {
        let Self { server, least, why_least, advised, why_advised } = self;
        match Version::parse(told) {
            Some(version) if version < *least => VersionVerdict::TooOld(format!(
                "{server} {told} is too old, {least} is the least: {why_least}; install {advised} or later"
            )),
            Some(version) if version < *advised => VersionVerdict::Unadvised(format!(
                "{server} {told} is old: {why_advised}; install {advised} or later"
            )),
            Some(_) => VersionVerdict::Supported,
            None => VersionVerdict::Unadvised(format!(
                "{server} reports a version that cannot be read, {told:?}: check that it is {advised} or later"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: VersionFloor = VersionFloor {
        server: "server",
        least: Version([2, 10, 4]),
        why_least: "it loses",
        advised: Version([2, 12, 6]),
        why_advised: "it leaks",
    };

    #[test]
    fn a_version_stands_below_between_or_above_the_floors() {
        for old in ["2.9.10", "2.10.3", "v2.10", "1", "2.10.3-RC.9"] {
            assert!(
                matches!(FLOOR.judge(old), VersionVerdict::TooOld(text) if text.contains("2.10.4")),
                "{old}"
            );
        }
        for middling in ["2.10.4", "2.12.5", "2.11.11-beta", "", "unknown", "99999999999.1"] {
            assert!(
                matches!(FLOOR.judge(middling), VersionVerdict::Unadvised(text) if text.contains("2.12.6")),
                "{middling}"
            );
        }
        for new in ["2.12.6", "2.15.1", "3", "2.12.6-preview"] {
            assert_eq!(FLOOR.judge(new), VersionVerdict::Supported, "{new}");
        }
    }

    #[test]
    fn a_version_is_read_as_servers_write_it() {
        for (text, version) in [
            ("15.20 (Debian 15.20-0+deb12u1)", [15, 20, 0]),
            ("18beta1", [18, 0, 0]),
            ("14.19", [14, 19, 0]),
            ("v2.10.26", [2, 10, 26]),
        ] {
            assert_eq!(Version::parse(text), Some(Version(version)), "{text}");
        }
    }
}
