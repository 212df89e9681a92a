//! A guest's memory: a sparse file, read-only once published, and below it those of the templates that
//! it comes from.
//!
//! The file of a template that was booted holds all of the memory. That of a snapshot has the same length and
//! holds only the pages that its VM had written; the others are in the *layers* below, the files of its
//! ancestors, which its directory has hard links to. [`LayerMap`] says where each page is.

mod chunks;
mod digests;
mod error;
mod extents;
mod hole_lock;
mod inherit;
mod layer_map;
mod layers;
mod plan;
mod seal;
mod verify;

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Stat, ftruncate};

use crate::error::FileError;
use crate::files;

pub use digests::{ChunkDigest, ChunkDigests, FILE_NAME as DIGESTS_NAME};
pub use error::MemoryError;
pub use hole_lock::HoleLock;
pub use inherit::Wanted;
pub(crate) use inherit::{clear, copy_range, inherit};
pub use layer_map::{FILE_NAME as LAYERS_NAME, Layer, LayerMap, MAX_LAYERS, MAX_RUNS};
pub use layers::{LayerFile, MemoryLayers};
pub use plan::OwnMemory;
pub(crate) use plan::OwnPlan;
pub(crate) use seal::{Known, seal};
pub(crate) use verify::damaged_chunks;

/// Bytes of a page, the least that is told apart as zero.
pub const PAGE_SIZE: u64 = 4096;

/// Bytes of a chunk, which has a digest of its own.
pub const CHUNK_SIZE: u64 = 2 << 20;

/// Name of the memory file in a template's directory.
pub const FILE_NAME: &str = "memory";

/// Makes a memory file of this length without any data in it, for its owner only.
pub(crate) fn create_at(
    dir: BorrowedFd<'_>,
    path: &Path,
    length: u64,
) -> Result<File, MemoryError> {
    if length == 0 || !length.is_multiple_of(PAGE_SIZE) {
        return Err(MemoryError::BadLength {
            path: path.to_path_buf(),
            found: length,
        });
    }
    let file = files::create_at(dir, FILE_NAME, path)?;
    ftruncate(&file, length).map_err(FileError::on("set the length of", path))?;
    Ok(file)
}

/// Opens a memory file for reading: a regular file, with exactly the bytes that are expected.
///
/// Clones map it, and a mapping beyond the end of a file kills its process with SIGBUS; so the
/// length is checked here, once, for all of them.
pub(crate) fn open_at(
    dir: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    expected: u64,
) -> Result<(File, Stat), MemoryError> {
    let (file, stat) = files::open_regular_at(dir, Path::new(name), path)?;
    let found = stat.st_size.cast_unsigned();
    if found == expected {
        Ok((file, stat))
    } else {
        Err(MemoryError::Length {
            path: path.to_path_buf(),
            found,
            expected,
        })
    }
}
