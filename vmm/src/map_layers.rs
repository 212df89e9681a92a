//! Mapping the files of a template's memory over address space of this process.

use crate::memory::MemoryError;
use snapshot::MemoryLayers;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// What a guest does with its memory.
pub const ACCESS: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// How a clone has its template's files.
pub const COPY_ON_WRITE: i32 = libc::MAP_PRIVATE | libc::MAP_NORESERVE;

/// Maps the parts of `range` of a memory that are not in its deepest file, where that is mapped already.
///
/// # Safety
/// At `address` is a mapping of the caller's that is as long as the range and that nobody uses yet.
///
/// # Errors
/// The host does not map a file.
pub unsafe fn map_overlays(
    address: *mut u8,
    memory: &MemoryLayers,
    range: &Range<u64>,
) -> Result<(), MemoryError> {
    let mut overlays = memory.overlays(range);
    // SAFETY: the caller's promise; overlays are parts of the range.
    overlays.try_for_each(|(run, file)| unsafe { map_run(address, range.start, &run, file) })
}

/// Maps all of `range` of a memory.
///
/// # Safety
/// As for [`map_overlays`].
///
/// # Errors
/// As for [`map_overlays`].
pub unsafe fn map_all(
    address: *mut u8,
    memory: &MemoryLayers,
    range: &Range<u64>,
) -> Result<(), MemoryError> {
    let mut runs = memory.runs(range);
    // SAFETY: the caller's promise; runs are parts of the range.
    runs.try_for_each(|(run, file)| unsafe { map_run(address, range.start, &run, file) })
}

/// # Safety
/// The mapping at `address`, which stands for the memory from `start` on, has the run inside and is the caller's.
unsafe fn map_run(
    address: *mut u8,
    start: u64,
    run: &Range<u64>,
    file: &File,
) -> Result<(), MemoryError> {
    let length = run.end - run.start;
    let too_large = |_| MemoryError::TooLarge(length);
    let inside = usize::try_from(run.start - start).map_err(too_large)?;
    let bytes = usize::try_from(length).map_err(too_large)?;
    let offset = libc::off_t::try_from(run.start).map_err(too_large)?;
    let flags = COPY_ON_WRITE | libc::MAP_FIXED;
    // SAFETY: the caller's promise.
    unsafe {
        map_over(
            address.wrapping_add(inside),
            bytes,
            flags,
            file.as_raw_fd(),
            offset,
        )
    }
    .map_err(MemoryError::Load)
}

/// # Safety
/// The range is inside a mapping of the caller's, whose content may be replaced.
pub unsafe fn map_over(
    address: *mut u8,
    length: usize,
    flags: i32,
    file: i32,
    offset: libc::off_t,
) -> io::Result<()> {
    // SAFETY: the caller's promise; MAP_FIXED replaces exactly this range.
    let mapped = unsafe { libc::mmap(address.cast(), length, ACCESS, flags, file, offset) };
    if mapped == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
