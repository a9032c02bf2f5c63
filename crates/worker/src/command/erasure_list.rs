//! The form of the list of erasures.
//!
//! It is lines of JSON: a heading with the list's version and the fingerprint of the key, an erasure a line, and at last their
//! number, which shows that the list was not truncated. It holds hashes and times, and no person's id.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_domain::{ErasedPersonError, GuildId, TextError};
use muster_storage::{Erasure, MAX_ERASURES};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The list's version.
const VERSION: u32 = 1;
/// The longest line, in bytes: three times what an erasure needs.
const MAX_LINE: usize = 1024;
/// How far ahead of this machine's clock an erasure may lie. One in the far future would keep a person away for good.
const MAX_AHEAD: Duration = Duration::from_hours(24);

/// Why a list was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("cannot read {}: {error}", list.display())]
    Read { list: PathBuf, error: std::io::Error },
    #[error(
        "the list was made under another key ({list}) than this database's ({here}): it is of another deployment, export it from \
         the database that this one is a backup of"
    )]
    Key { list: String, here: String },
    #[error("line {number} of the list: {what}; take the list as `muster-worker erasures export` wrote it")]
    Line { number: u64, what: String },
    #[error("the list is truncated after line {number}: export the whole list and apply it again")]
    CutShort { number: u64 },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Heading {
    muster_erasures: u32,
    key: String,
}

impl Heading {
    pub(super) fn new(key: String) -> Self {
        Self { muster_erasures: VERSION, key }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(super) enum Entry {
    Erasure {
        guild_id: String,
        person: String,
        #[serde(with = "time::serde::rfc3339")]
        erased_at: OffsetDateTime,
    },
    End {
        erasures: u64,
    },
}

/// A list, read line by line.
pub(super) struct List {
    path: PathBuf,
    lines: Box<dyn BufRead>,
    number: u64,
    erasures: u64,
    has_ended: bool,
}

impl List {
    pub(super) fn open(path: &Path) -> Result<Self, ListError> {
        let lines: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(BufReader::new(std::io::stdin()))
        } else {
            let file = File::open(path).map_err(|error| ListError::Read { list: path.to_owned(), error })?;
            Box::new(BufReader::new(file))
        };
        Ok(Self { path: path.to_owned(), lines, number: 0, erasures: 0, has_ended: false })
    }

    /// Reads the first line, which says under which key the list was made.
    pub(super) fn heading(&mut self, here: &str) -> Result<(), ListError> {
        let line = self.line()?.ok_or(ListError::CutShort { number: 0 })?;
        let heading: Heading = serde_json::from_slice(&line).map_err(|error| self.wrong(error))?;
        if heading.muster_erasures != VERSION {
            return Err(self.wrong(format!("it is of version {}, not {VERSION}", heading.muster_erasures)));
        }
        if heading.key == here {
            Ok(())
        } else {
            Err(ListError::Key { list: heading.key, here: here.to_owned() })
        }
    }

    /// The next erasures, as many as are taken at once; none behind the list's last line.
    pub(super) fn some(&mut self) -> Result<Vec<Erasure>, ListError> {
        let mut some = Vec::new();
        while !self.has_ended && some.len() < MAX_ERASURES {
            let line = self.line()?.ok_or(ListError::CutShort { number: self.number })?;
            match serde_json::from_slice(&line).map_err(|error| self.wrong(error))? {
                Entry::Erasure { guild_id, person, erased_at } => {
                    if erased_at > OffsetDateTime::now_utc() + MAX_AHEAD {
                        return Err(self.wrong("erased_at is more than a day ahead of this machine's clock"));
                    }
                    let guild = GuildId::parse(guild_id).map_err(|error: TextError| self.wrong(error))?;
                    let person = person.parse().map_err(|error: ErasedPersonError| self.wrong(error))?;
                    some.push(Erasure { guild, person, erased_at });
                    self.erasures = self.erasures.saturating_add(1);
                }
                Entry::End { erasures } if erasures == self.erasures => self.has_ended = true,
                Entry::End { erasures } => {
                    return Err(
                        self.wrong(format!("it counts {erasures} erasures, and {} came", self.erasures))
                    );
                }
            }
        }
        if self.has_ended && self.line()?.is_some() {
            return Err(self.wrong("found after the end of the list"));
        }
        Ok(some)
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, ListError> {
        let mut line = Vec::new();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let read = (&mut self.lines).take(most).read_until(b'\n', &mut line);
        read.map_err(|error| ListError::Read { list: self.path.clone(), error })?;
        if line.is_empty() {
            return Ok(None);
        }
        self.number = self.number.saturating_add(1);
        if line.len() >= MAX_LINE && !line.ends_with(b"\n") {
            return Err(self.wrong(format!("it has more than {MAX_LINE} bytes")));
        }
        Ok(Some(line))
    }

    fn wrong(&self, what: impl ToString) -> ListError {
        ListError::Line { number: self.number, what: what.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233aabbccdd";
    const PERSON: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    /// Reads a whole list, and returns the persons that it names.
    fn read(text: &str) -> Result<usize, ListError> {
        let lines = Box::new(std::io::Cursor::new(text.to_owned().into_bytes()));
        let mut list = List { path: "-".into(), lines, number: 0, erasures: 0, has_ended: false };
        list.heading(KEY)?;
        let mut count = 0;
        loop {
            let some = list.some()?;
            if some.is_empty() {
                return Ok(count);
            }
            count += some.len();
        }
    }

    fn list(erasures: usize, end: usize) -> String {
        let line =
            format!(r#"{{"guild_id":"tabr","person":"{PERSON}","erased_at":"2026-11-25T12:00:00.5Z"}}"#);
        let lines = format!("{line}\n").repeat(erasures);
        format!("{{\"muster_erasures\":1,\"key\":\"{KEY}\"}}\n{lines}{{\"erasures\":{end}}}\n")
    }

    #[test]
    fn a_whole_list_is_read_however_long() {
        for count in [0, 1, MAX_ERASURES, 2 * MAX_ERASURES + 1] {
            assert_eq!(read(&list(count, count)).unwrap(), count);
        }
    }

    #[test]
    fn a_list_that_is_not_whole_is_refused_with_its_line() {
        let good = list(2, 2);
        let line = |number: usize| good.lines().nth(number).unwrap().to_owned();
        let ahead = line(1).replace("2026", "9999");
        let cases = [
            (String::new(), "truncated after line 0"),
            (good.replace(KEY, "ffffffffffffffff"), "another key (ffffffffffffffff)"),
            (good.replace("erasures\":1", "erasures\":2"), "line 1 of the list: it is of version 2"),
            (good.replace("\n{\"erasures\":2}\n", ""), "truncated after line 3"),
            (list(2, 3), "line 4 of the list: it counts 3 erasures, and 2 came"),
            (list(3, 2), "line 5 of the list: it counts 2"),
            (format!("{good}{}\n", line(1)), "line 5 of the list: found after the end of the list"),
            (good.replace(PERSON, "paul"), "line 2 of the list: an erased person"),
            (good.replace("tabr", ""), "line 2 of the list"),
            (good.replace(&line(1), &ahead), "line 2 of the list: erased_at is more than a day ahead"),
            (good.replace("\"person\"", "\"persons\""), "line 2 of the list"),
            (good.replace("tabr", &"x".repeat(MAX_LINE)), "line 2 of the list: it has more than 1024 bytes"),
        ];
        for (text, says) in cases {
            let error = read(&text).map(|count| panic!("{count} of {text}")).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
