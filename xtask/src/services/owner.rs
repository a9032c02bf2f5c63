use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::{Uid, User};

use super::run_directory::write_secret;

/// Whom a PostgreSQL cluster belongs to and who runs it: this user, but another where this one is root, as whom PostgreSQL
/// refuses to run.
#[derive(Debug)]
pub(super) struct Owner(Option<User>);

impl Owner {
    pub(super) fn new() -> Result<Self> {
        if !Uid::effective().is_root() {
            return Ok(Self(None));
        }
        let mut users = ["postgres", "nobody"].into_iter().filter_map(|name| User::from_name(name).ok()?);
        let user = users.next();
        Ok(Self(Some(
            user.context("PostgreSQL does not run as root, and there is no user postgres or nobody")?,
        )))
    }

    /// Has a command run as the owner.
    pub(super) fn runs(&self, command: &mut Command) {
        if let Some(user) = &self.0 {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
    }

    /// Makes a directory that only the owner may look into.
    pub(super) fn make_directory(&self, path: &Path) -> Result<()> {
        fs::create_dir(path).with_context(|| format!("cannot make {}", path.display()))?;
        fs::set_permissions(path, Permissions::from_mode(0o700))?;
        self.give(path)
    }

    /// Writes a file that only the owner may read.
    pub(super) fn write(&self, path: &Path, content: &str) -> Result<()> {
        write_secret(path, content)?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> Result<()> {
        let Some(user) = &self.0 else { return Ok(()) };
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("cannot give {} to {}", path.display(), user.name))
    }
}
