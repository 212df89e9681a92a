//! Why a memory file was refused.

use std::path::PathBuf;

use super::PAGE_SIZE;
use crate::error::FileError;
use crate::state::{StateError, WriteError};

/// A memory file, or its digests, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file could not be used at all.
    #[error(transparent)]
    File(#[from] FileError),
    /// The memory asked for cannot be stored.
    #[error("{} cannot have {found} bytes, expected a multiple of {PAGE_SIZE} above 0", path.display())]
    BadLength {
        /// The memory file.
        path: PathBuf,
        /// Bytes asked for.
        found: u64,
    },
    /// The memory file was cut or made longer.
    #[error("{} has {found} bytes, expected {expected}", path.display())]
    Length {
        /// The memory file.
        path: PathBuf,
        /// Bytes there are.
        found: u64,
        /// Bytes the manifest names.
        expected: u64,
    },
    /// The memory file's content is not what was published.
    #[error("{} was changed after it was published: first in the 2 MiB at offset {offset:#x}", path.display())]
    Changed {
        /// The memory file.
        path: PathBuf,
        /// Offset of the first damaged chunk in bytes.
        offset: u64,
    },
    /// The map of the layers contradicts itself or the files, although its checksum is right.
    #[error("{} does not fit the template: {reason}", path.display())]
    Layers {
        /// The file with the map.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The digests, or the map of the layers, could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// They could not be encoded.
    #[error(transparent)]
    Encode(#[from] WriteError),
}
