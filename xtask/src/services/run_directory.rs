use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};

/// A temporary directory that holds all of a run: data, certificates, logs and the ids of its processes. When the last
/// clone is dropped, or the process dies in whatever way, those processes are stopped and the directory is removed.
#[derive(Debug, Clone)]
pub struct RunDirectory(Arc<Kept>);

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    keeper: Child,
}

impl RunDirectory {
    /// Makes a new one in the system's directory for temporary files.
    pub fn create() -> Result<Self> {
        // Others may pass through but not list: PostgreSQL runs as another user when this process is root's.
        let directory = tempfile::Builder::new()
            .prefix("muster-")
            .permissions(Permissions::from_mode(0o711))
            .tempdir()
            .context("cannot make a temporary directory: is TMPDIR writable?")?;
        let keeper = Command::new("/bin/sh")
            .args(["-c", include_str!("keeper.sh"), "muster-keeper"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot run /bin/sh")?;
        Ok(Self(Arc::new(Kept { path: directory.keep(), keeper })))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Writes a file that only this user may read, and answers its path.
    pub fn secret_file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        write_secret(&path, content)?;
        Ok(path)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// Writes a file that only its owner may read.
pub(super) fn write_secret(path: &Path, content: &str) -> Result<()> {
    let write = || {
        fs::write(path, "")?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        fs::write(path, content)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
