use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::{Uid, User};

use crate::tool::output;

/// Who runs PostgreSQL and PgBouncer, and whom their files belong to: this user, but another where this one is root, as
/// whom they refuse to run.
#[derive(Debug)]
pub struct Owner(Option<User>);

impl Owner {
    /// The user of this machine that it is.
    pub fn new() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Ok(Self(None));
        }
        let mut users = ["postgres", "nobody"].into_iter().filter_map(|name| User::from_name(name).ok()?);
        let user = users.next().context("this is root, and there is no user postgres or nobody")?;
        Ok(Self(Some(user)))
    }

    /// Has a command run as the owner.
    pub fn runs(&self, command: &mut Command) {
        if let Some(user) = &self.0 {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
    }

    /// Makes a file, or a directory with all in it, the owner's.
    pub fn give(&self, path: &Path) -> Result<()> {
        let Some(user) = &self.0 else { return Ok(()) };
        let owner = format!("{}:{}", user.uid, user.gid);
        output(Command::new("chown").args(["-R", &owner]).arg(path)).map(drop)
    }
}
