//! The one way by which a small file with certificates or a secret is read: whole, or not at all.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Reads a regular file of at most `bound` bytes. A link is followed.
///
/// # Errors
/// [`FileError`] when it cannot be read, is no regular file, or is larger.
pub fn read(path: &Path, bound: usize) -> Result<Vec<u8>, FileError> {
    // Before it is opened: a pipe that nobody writes to would hold up whoever opens it.
    let kind = fs::metadata(path)?.file_type();
    if kind.is_dir() {
        return Err(FileError::Directory);
    }
    if !kind.is_file() {
        return Err(FileError::Irregular);
    }
    let limit = u64::try_from(bound).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > bound { Err(FileError::TooLarge(bound)) } else { Ok(bytes) }
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system does not give it.
    #[error("cannot be read: check that it is there and that this user may read it")]
    Unreadable(#[from] io::Error),
    /// It is a directory.
    #[error("is a directory: name the file in it")]
    Directory,
    /// It is a pipe, a socket or a device, which cannot be read again when it changes.
    #[error(
        "is not a regular file: it is read again whenever it changes, which a pipe or a device does not allow"
    )]
    Irregular,
    /// It is larger than what it may hold.
    #[error("has more than {0} bytes: this is not the file that is meant, or it holds more than is needed")]
    TooLarge(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(matches!(read(&path, 4), Err(FileError::Unreadable(_))));
        assert!(matches!(read(directory.path(), 4), Err(FileError::Directory)));
        assert!(matches!(read(Path::new("/dev/null"), 4), Err(FileError::Irregular)));
        fs::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        fs::write(&path, "five!").unwrap();
        assert!(matches!(read(&path, 4), Err(FileError::TooLarge(4))));
    }
}
