//! Notices certificates and secrets that change on disk, and warns of certificates that expire.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use muster_messaging::tls::certificate::Certificate;
use muster_messaging::tls::file::{self, FileError};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::descriptors;

/// How often the files are looked at. What has changed is taken up when two looks in a row agree, so that a certificate
/// is not read without its key.
pub(crate) const LOOK: Duration = Duration::from_secs(2);
/// How long refused files wait before they are tried again: perhaps only a server was away.
const AGAIN: Duration = Duration::from_secs(30);
/// How long before its end the warnings of a certificate begin, and how often they come.
const WARN_DAYS: f64 = 14.0;
const WARN_EVERY: Duration = Duration::from_hours(24);
/// From how many days before its end on a server's certificate is looked at anew each day: one more than it is alerted of.
const REDIAL_DAYS: f64 = 15.0;
pub(crate) const REDIAL_EVERY: Duration = Duration::from_hours(24);
/// When that is tried again after it failed.
pub(crate) const REDIAL_AGAIN: Duration = Duration::from_hours(1);
/// The most bytes of a file that are looked at: more than any that is accepted.
const MAX_LOOKED_AT: usize = 2 * 1024 * 1024;

/// Files by their contents: what a path leads to is read each time, so that a swapped link counts as well.
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    // Keyed anew in each process, so that a digest says nothing of a secret.
    hasher: RandomState,
    in_use: u64,
    last: u64,
    refused: Option<(u64, Instant)>,
}

impl Files {
    /// The files as they are now. Make it before they are read for use, so that no change in between is missed.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let mut files = Self { paths, hasher: RandomState::new(), in_use: 0, last: 0, refused: None };
        files.in_use = files.digest().unwrap_or_default();
        files.last = files.in_use;
        files
    }

    /// Looks at the files. True when there is something new to try.
    pub(crate) fn look(&mut self) -> bool {
        // That a file cannot be opened for want of descriptors says nothing of the file.
        let Some(now) = self.digest() else { return false };
        let before = std::mem::replace(&mut self.last, now);
        let waits = |(refused, until): (u64, Instant)| refused == self.last && Instant::now() < until;
        self.last == before && self.last != self.in_use && !self.refused.is_some_and(waits)
    }

    /// Records that these files are in use.
    pub(crate) fn taken(&mut self, seen: u64) {
        self.in_use = seen;
        self.refused = None;
    }

    /// Records that these files were refused. True the first time.
    pub(crate) fn refused(&mut self, seen: u64) -> bool {
        let first = self.refused.is_none_or(|(refused, _)| refused != seen);
        self.refused = Some((seen, Instant::now() + AGAIN));
        first
    }

    /// The digest of the last look.
    pub(crate) const fn seen(&self) -> u64 {
        self.last
    }

    /// `None` when the process has no descriptor left to look with.
    fn digest(&self) -> Option<u64> {
        let mut contents: Vec<Option<Vec<u8>>> = Vec::new();
        for path in &self.paths {
            match file::read(path, MAX_LOOKED_AT) {
                Ok(bytes) => contents.push(Some(bytes)),
                Err(FileError::Unreadable(error)) if descriptors::is_shortage(&error) => return None,
                Err(_) => contents.push(None),
            }
        }
        Some(self.hasher.hash_one(contents))
    }
}

/// Warns of certificates that end soon, each once a day.
#[derive(Default)]
pub(crate) struct Expiry(HashMap<String, Instant>);

impl Expiry {
    pub(crate) fn watch(&mut self, whose: &'static str, certificates: &[Certificate]) {
        for certificate in certificates {
            let days = days_left(certificate);
            if days <= WARN_DAYS && self.is_due(&certificate.fingerprint) {
                tracing::warn!(
                    certificate = whose,
                    subject = certificate.subject,
                    serial = certificate.serial,
                    not_after = %certificate.not_after,
                    days,
                    "a certificate ends soon: renew it"
                );
            }
        }
    }

    fn is_due(&mut self, fingerprint: &str) -> bool {
        let now = Instant::now();
        self.0.retain(|_, warned| now.saturating_duration_since(*warned) < WARN_EVERY);
        let due = !self.0.contains_key(fingerprint);
        if due {
            self.0.insert(fingerprint.to_owned(), now);
        }
        due
    }
}

fn days_left(certificate: &Certificate) -> f64 {
    (certificate.not_after - OffsetDateTime::now_utc()).as_seconds_f64() / 86_400.0
}

/// Whether a certificate that one of the servers showed ends soon. The server may have another by now, which no connection that stands shows.
pub(crate) fn ends_soon(shown: &[Certificate]) -> bool {
    shown.iter().any(|certificate| days_left(certificate) <= REDIAL_DAYS)
}

#[cfg(test)]
mod tests {
    use muster_messaging::tls::key::KeyKind;

    use super::*;

    #[test]
    fn a_servers_certificate_is_looked_at_anew_before_it_is_alerted_of() {
        let ending_in = |days: i64| {
            let not_after = OffsetDateTime::now_utc() + time::Duration::days(days);
            [Certificate {
                subject: String::new(),
                issuer: String::new(),
                names: Vec::new(),
                serial: String::new(),
                not_before: OffsetDateTime::UNIX_EPOCH,
                not_after,
                key: KeyKind::Unknown,
                fingerprint: String::new(),
            }]
        };
        assert!(ends_soon(&ending_in(14)) && ends_soon(&ending_in(-1)));
        assert!(!ends_soon(&ending_in(30)) && !ends_soon(&[]));
    }

    #[test]
    fn a_change_counts_when_it_has_settled_and_until_it_is_taken() {
        let directory = std::env::temp_dir().join(format!("muster-rotation-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let (first, second, link) = (directory.join("1"), directory.join("2"), directory.join("link"));
        std::fs::write(&first, "one").unwrap();
        std::fs::write(&second, "two").unwrap();
        std::os::unix::fs::symlink(&first, &link).unwrap();
        let mut files = Files::new(vec![link.clone()]);
        assert!(!files.look());

        // As Kubernetes swaps a secret: a new link is renamed over the old.
        let swapped = directory.join("swapped");
        std::os::unix::fs::symlink(&second, &swapped).unwrap();
        std::fs::rename(&swapped, &link).unwrap();
        assert!(!files.look(), "it may still be changing");
        assert!(files.look());
        assert!(files.refused(files.seen()), "told once");
        assert!(!files.look(), "not tried again at once");
        assert!(!files.refused(files.seen()));

        std::fs::write(&second, "three").unwrap();
        assert!(!files.look());
        assert!(files.look(), "another change is another chance");
        files.taken(files.seen());
        assert!(!files.look());
        std::fs::remove_file(&second).unwrap();
        assert!(!files.look());
        assert!(files.look(), "a file that is gone has changed");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
