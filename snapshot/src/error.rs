//! What can go wrong with any file, whatever is in it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// A file that could not be used, before its contents were looked at.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A system call on the file failed.
    #[error("Cannot {action} {}", path.display())]
    Io {
        /// What was tried, as a verb: `open`, `write`, `sync`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else than a regular file is there.
    #[error("{} is {found}, expected a regular file", path.display())]
    NotRegular {
        /// The path that was opened.
        path: PathBuf,
        /// What is there instead, with its article.
        found: &'static str,
    },
    /// Something else than a directory is there.
    #[error("{} is not a directory", path.display())]
    NotDirectory {
        /// The path that was opened.
        path: PathBuf,
    },
    /// The file is larger than this kind of file can be.
    #[error("{} has {found} bytes, more than the {limit} such a file may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
}

impl FileError {
    /// The kernel's error code, where a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } => Errno::from_io_error(source),
            _ => None,
        }
    }

    /// Whether the file system, or the user's quota on it, is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// For `map_err`: names what was tried on which path.
    pub(crate) fn on<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_path_buf(),
            source: source.into(),
        }
    }
}

/// Whether this process lacks descriptors or memory, which says nothing about the file.
pub(crate) fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let errno = error.downcast_ref().and_then(Errno::from_io_error);
        if matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM)) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{StateError, StoreError};

    #[test]
    fn shortages_are_told_from_damage_at_any_depth() {
        let shortage = FileError::on("open", Path::new("state"))(Errno::MFILE);
        assert!(is_shortage(&StoreError::from(StateError::from(shortage))));
        let damage = FileError::on("open", Path::new("state"))(Errno::IO);
        assert!(!is_shortage(&StoreError::from(damage)));
    }
}
