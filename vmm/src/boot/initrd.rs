//! The initial RAM disk, placed as high as the kernel can reach.

use super::kernel::LoadedKernel;
use crate::layout::{HIGH_MEMORY, LOW_RAM_END};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const PAGE: u64 = 4096;
/// Highest address that a kernel without a header of its own takes (2 GiB of direct mapping less
/// what Linux on x86 has always used).
const DEFAULT_LIMIT: u64 = 0x37ff_ffff;

/// An initial RAM disk in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoadedInitrd {
    /// First byte.
    pub start: u32,
    /// Bytes.
    pub length: u32,
}

/// The initial RAM disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file cannot be opened or read.
    #[error("Cannot read initrd {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The file is a directory, a pipe or the like, or empty.
    #[error("Initrd {path} is {found}; expected a cpio archive, plain or compressed")]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Not enough memory.
    #[error(
        "Initrd {path} of {length} bytes does not fit between the kernel's end at {start:#x} and {end:#x}; give the guest more memory with --mem"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes.
        length: u64,
        /// End of the kernel.
        start: u64,
        /// End of the memory that the kernel can reach.
        end: u64,
    },
    /// Reading into guest memory failed.
    #[error("Initrd {path} cannot be loaded into guest memory")]
    Load {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// Loads the file at `path` behind the kernel, or where there is room.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    path: &Path,
    kernel: &LoadedKernel,
) -> Result<LoadedInitrd, InitrdError> {
    let read = |source| InitrdError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    let kind = |found| InitrdError::Kind {
        path: path.to_owned(),
        found,
    };
    if !metadata.is_file() {
        return Err(kind(if metadata.is_dir() {
            "a directory"
        } else {
            "not a regular file"
        }));
    }
    if metadata.len() == 0 {
        return Err(kind("empty"));
    }
    let (start, length) = place(memory, kernel, metadata.len()).ok_or_else(|| {
        let end = reachable_end(memory, kernel);
        InitrdError::TooLarge {
            path: path.to_owned(),
            length: metadata.len(),
            start: kernel.end,
            end,
        }
    })?;
    memory
        .read_exact_volatile_from(GuestAddress(u64::from(start)), &mut file, length as usize)
        .map_err(|source| InitrdError::Load {
            path: path.to_owned(),
            source,
        })?;
    Ok(LoadedInitrd { start, length })
}

/// The highest page-aligned place behind the kernel; in front of it in a small guest.
fn place(memory: &GuestMemoryMmap, kernel: &LoadedKernel, length: u64) -> Option<(u32, u32)> {
    let behind = kernel.end..reachable_end(memory, kernel);
    let in_front = HIGH_MEMORY.0..kernel.start;
    let start = highest_in(behind, length).or_else(|| highest_in(in_front, length))?;
    Some((u32::try_from(start).ok()?, u32::try_from(length).ok()?))
}

fn highest_in(room: Range<u64>, length: u64) -> Option<u64> {
    let start = room.end.checked_sub(length)? / PAGE * PAGE;
    (start >= room.start).then_some(start)
}

fn reachable_end(memory: &GuestMemoryMmap, kernel: &LoadedKernel) -> u64 {
    let limit = kernel
        .header
        .map_or(DEFAULT_LIMIT, |header| u64::from(header.initrd_addr_max));
    let ends = memory
        .iter()
        .map(|region| region.start_addr().0 + region.len());
    let low_end = ends.filter(|end| *end <= LOW_RAM_END).max().unwrap_or(0);
    low_end.min(limit + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn kernel(end: u64) -> LoadedKernel {
        LoadedKernel {
            entry: GuestAddress(0x100_0000),
            start: 0x100_0000,
            end,
            header: None,
        }
    }

    fn load_bytes(length: usize, mib: usize, kernel_end: u64) -> Result<LoadedInitrd, InitrdError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0x5a; length]).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap();
        load(&memory, file.path(), &kernel(kernel_end))
    }

    #[test]
    fn initrd_ends_at_the_top_of_low_memory() {
        let loaded = load_bytes(5000, 64, 0x200_0000).unwrap();
        assert_eq!((loaded.start, loaded.length), (0x400_0000 - 0x2000, 5000));
    }

    #[test]
    fn initrd_stays_where_the_kernel_can_reach_it() {
        let loaded = load_bytes(4096, 1024, 0x200_0000).unwrap();
        assert_eq!(loaded.start, 0x3800_0000 - 0x1000);
    }

    #[test]
    fn initrd_goes_in_front_of_the_kernel_where_there_is_no_room_behind_it() {
        let loaded = load_bytes(8192, 64, 0x400_0000 - 4096).unwrap();
        assert_eq!(loaded.start, 0x100_0000 - 8192);
    }

    #[test]
    fn initrd_that_would_overlap_the_kernel_is_refused() {
        let error = load_bytes(16 << 20, 64, 0x400_0000 - 4096)
            .unwrap_err()
            .to_string();
        assert!(error.contains("16777216 bytes does not fit"), "{error}");
        assert!(load_bytes(65 << 20, 64, 0x200_0000).is_err());
    }

    #[test]
    fn wrong_files_are_named() {
        assert!(
            load_bytes(0, 64, 0x200_0000)
                .unwrap_err()
                .to_string()
                .contains("is empty")
        );
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap();
        let error = load(&memory, Path::new("/"), &kernel(0))
            .unwrap_err()
            .to_string();
        assert!(error.contains("a directory"), "{error}");
    }
}
