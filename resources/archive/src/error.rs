//! Why a tree could not be copied.

use std::io;
use std::path::PathBuf;

/// Why a tree could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or link could not be used.
    #[error("Cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The stream could not be written: whoever takes it has gone, or has no room.
    #[error("Cannot write the archive: {0}")]
    Write(#[source] io::Error),
    /// The stream ended early or is no archive.
    #[error("Cannot read the archive: {0}")]
    Read(#[source] io::Error),
    /// The stream's header or contents are not as they have to be.
    #[error("Archive is refused: {0}")]
    Refused(String),
    /// A name in the stream does not stay below the destination.
    #[error("Archive is refused: {} leads out of the destination", path.display())]
    Escapes {
        /// The name.
        path: PathBuf,
    },
    /// Files changed while they were read.
    #[error("{} changed while it was read; the copy has zeros at its end", path.display())]
    Changed {
        /// The first such file.
        path: PathBuf,
    },
    /// The destination has to be a directory.
    #[error("There is no directory {}", path.display())]
    NoDirectory {
        /// The destination, or the directory that it should be in.
        path: PathBuf,
    },
    /// A directory cannot take a file's place.
    #[error("Cannot copy a directory to {}, which is not one", path.display())]
    NotADirectory {
        /// The destination.
        path: PathBuf,
    },
}

impl Error {
    /// Wraps the failure of `action` on `path`; for `map_err`.
    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source: source.into(),
        }
    }
}
