//! What the bot knows, in a file of JSON lines: each says which change it comes from, and may say a member's role.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use muster_messaging::domain::{Tier, UserId};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// How many lines are added, beside one for each role, before the file is written anew.
const MAX_ADDED: usize = 10_000;

/// The roles that were asked for, and the last change that had its effect.
pub(crate) struct Memory {
    path: PathBuf,
    file: Option<File>,
    /// How many lines were added since the file was written anew.
    added: usize,
    last: Option<Last>,
    roles: BTreeMap<UserId, Tier>,
}

/// Which change was the last.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Last {
    /// Its number.
    pub(crate) number: u64,
    /// When it was made; `None` until it comes, for who asks for the last change is told its number only.
    #[serde(default, with = "time::serde::rfc3339::option")]
    pub(crate) at: Option<OffsetDateTime>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    last: Last,
    user: Option<UserId>,
    role: Option<Tier>,
}

impl Memory {
    /// Reads the file, if there is one.
    pub(crate) fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let mut memory = Self { path: path.into(), file: None, added: 0, last: None, roles: BTreeMap::new() };
        let text = match fs::read_to_string(&memory.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(memory),
            Err(error) => return Err(error),
        };
        // A line that was cut short, as by a full disk, ends what is known: the changes behind it are seen as a gap.
        for line in text.lines().map_while(|line| serde_json::from_str::<Line>(line).ok()) {
            memory.note(line);
        }
        if let Some(last) = memory.last {
            let roles = std::mem::take(&mut memory.roles);
            memory.replace(last, roles)?;
        }
        Ok(memory)
    }

    /// The last change that had its effect; `None` where nothing is known.
    pub(crate) fn last(&self) -> Option<Last> {
        self.last
    }

    /// Whether this change comes right behind the last.
    pub(crate) fn is_next(&self, number: u64) -> bool {
        self.last.and_then(|last| last.number.checked_add(1)) == Some(number)
    }

    /// The role that a member has.
    pub(crate) fn role(&self, user: &UserId) -> Option<&Tier> {
        self.roles.get(user)
    }

    /// The members who have one.
    pub(crate) fn users(&self) -> impl Iterator<Item = &UserId> {
        self.roles.keys()
    }

    /// Notes a member's role.
    pub(crate) fn put(&mut self, last: Last, user: &UserId, role: Option<&Tier>) -> io::Result<()> {
        self.write(Line { last, user: Some(user.clone()), role: role.cloned() })
    }

    /// Notes that a change needs nothing.
    pub(crate) fn passed(&mut self, last: Last) -> io::Result<()> {
        self.write(Line { last, user: None, role: None })
    }

    /// Writes the file anew, so that earlier lines of those who have no role any more are gone from it.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        let Some(last) = self.last else { return Ok(()) };
        let roles = std::mem::take(&mut self.roles);
        self.replace(last, roles)
    }

    /// Puts this in the place of all that was known.
    pub(crate) fn replace(&mut self, last: Last, roles: BTreeMap<UserId, Tier>) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut writer = BufWriter::new(File::create(&new)?);
        let line = |user: Option<UserId>, role: Option<Tier>| Line { last, user, role };
        let members = roles.iter().map(|(user, role)| line(Some(user.clone()), Some(role.clone())));
        for line in members.chain([line(None, None)]) {
            writeln!(writer, "{}", serde_json::to_string(&line)?)?;
        }
        let file = writer.into_inner()?;
        // Else a power cut could leave the new name with none of its content.
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        (self.file, self.added, self.last, self.roles) = (Some(file), 0, Some(last), roles);
        Ok(())
    }

    fn write(&mut self, line: Line) -> io::Result<()> {
        let text = format!("{}\n", serde_json::to_string(&line)?);
        if let Some(file) = &mut self.file {
            file.write_all(text.as_bytes())?;
        }
        self.note(line);
        self.added += 1;
        if self.added > MAX_ADDED + self.roles.len() { self.forget() } else { Ok(()) }
    }

    fn note(&mut self, line: Line) {
        self.last = Some(line.last);
        match (line.user, line.role) {
            (Some(user), Some(role)) => drop(self.roles.insert(user, role)),
            (Some(user), None) => drop(self.roles.remove(&user)),
            (None, _) => {}
        }
    }
}
