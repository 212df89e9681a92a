//! Huge pages for what every clone reads and none writes, such as the code of the guest's kernel.
//!
//! A page that a guest touches first costs an exit, in every clone. Where 2 MiB of a template are one huge page in
//! the host's page cache, KVM maps them for the guest at once. The kernel makes them on request, for files
//! on tmpfs (`MADV_COLLAPSE`, Linux 6.1; not where `shmem_enabled` is `deny`).

use crate::map_layers::{COPY_ON_WRITE, map_over};
use crate::memory::{HUGE_PAGE, MemoryError, huge_page_in, reserve, usize_of};
use snapshot::{MemoryLayers, WorkingSet};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use vm_memory::{GuestAddress, MmapRegion};

/// What of a huge page has to hold data, in bytes: the rest of it are zeros that take memory from then on, once for
/// all clones. In the memory of CPUs that are not there yet the kernel has little, and reads in all of it.
const LEAST_DATA: u64 = HUGE_PAGE / 4;

/// Asks the kernel for huge pages where a template has data and clones write nothing. It takes some milliseconds.
///
/// # Errors
/// The files cannot be looked at, or not mapped. A kernel or file system that has no such pages is none.
pub fn gather(memory: &MemoryLayers, written: &WorkingSet) -> Result<(), MemoryError> {
    // Room for one, wherever it begins.
    let window = reserve(GuestAddress(0), 2 * HUGE_PAGE)?;
    let whole = 0..memory.length() / HUGE_PAGE;
    for chunk in whole.map(|number| number * HUGE_PAGE..(number + 1) * HUGE_PAGE) {
        if let Some(file) = worthwhile(memory, written, &chunk)? {
            let _alone = memory.exchange_pages().map_err(MemoryError::Data)?;
            collapse(&window, file, &chunk)?;
        }
    }
    Ok(())
}

/// The one file that has all of a chunk which is to be a huge page.
fn worthwhile<'m>(
    memory: &'m MemoryLayers,
    written: &WorkingSet,
    chunk: &Range<u64>,
) -> Result<Option<&'m File>, MemoryError> {
    let overlaps = |run: &Range<u64>| run.start < chunk.end && chunk.start < run.end;
    if written.written().iter().any(overlaps) {
        return Ok(None);
    }
    let mut runs = memory.runs(chunk);
    let file = match (runs.next(), runs.next()) {
        (Some((_, file)), None) => file.as_ref(),
        _ => return Ok(None),
    };
    let data = memory.data_bytes(chunk).map_err(MemoryError::Data)?;
    Ok((data >= LEAST_DATA).then_some(file))
}

fn collapse(window: &MmapRegion, file: &File, chunk: &Range<u64>) -> Result<(), MemoryError> {
    let start = huge_page_in(window)?;
    let length = usize_of(HUGE_PAGE)?;
    let offset =
        libc::off_t::try_from(chunk.start).map_err(|_| MemoryError::TooLarge(chunk.start))?;
    let flags = COPY_ON_WRITE | libc::MAP_FIXED;
    // SAFETY: the window is the caller's, and a huge page that is aligned is inside.
    unsafe { map_over(start, length, flags, file.as_raw_fd(), offset) }
        .map_err(MemoryError::Load)?;
    for advice in [libc::MADV_POPULATE_READ, libc::MADV_COLLAPSE] {
        // SAFETY: the range was just mapped; neither advice changes its content.
        let result = unsafe { libc::madvise(start.cast(), length, advice) };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            tracing::debug!(%error, at = chunk.start, "No huge page");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    const CHUNK: Range<u64> = 0..HUGE_PAGE;

    fn on_tmpfs() -> File {
        File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap())
    }

    fn layers(file: File, data: &[Range<u64>]) -> MemoryLayers {
        file.set_len(4 * HUGE_PAGE).unwrap();
        for part in data {
            let bytes = vec![7; usize::try_from(part.end - part.start).unwrap()];
            file.write_all_at(&bytes, part.start).unwrap();
        }
        MemoryLayers::plain(file, Path::new("memory")).unwrap()
    }

    #[test]
    fn only_what_is_full_and_not_written_is_worthwhile() {
        let memory = layers(on_tmpfs(), &[0..HUGE_PAGE, HUGE_PAGE..HUGE_PAGE * 6 / 5]);
        let written = |run: Range<u64>| WorkingSet::new(vec![run], Vec::new());
        let is = |written: &WorkingSet, number: u64| {
            let chunk = number * HUGE_PAGE..(number + 1) * HUGE_PAGE;
            worthwhile(&memory, written, &chunk).unwrap().is_some()
        };
        let none = WorkingSet::default();
        assert_eq!(
            [0, 1, 2].map(|chunk| is(&none, chunk)),
            [true, false, false]
        );
        for run in [0..4096, HUGE_PAGE - 4096..HUGE_PAGE, 4096..8192] {
            assert!(!is(&written(run), 0));
        }
        assert!(is(&written(HUGE_PAGE..HUGE_PAGE + 4096), 0));
    }

    #[test]
    fn the_content_stays_wherever_the_file_is() {
        for file in [on_tmpfs(), tempfile::tempfile().unwrap()] {
            let memory = layers(file, &[CHUNK]);
            gather(&memory, &WorkingSet::default()).unwrap();
            let mut seen = vec![0; usize_of(HUGE_PAGE).unwrap()];
            memory.read_exact_at(&mut seen, 0).unwrap();
            assert!(seen.iter().all(|&byte| byte == 7));
            assert_eq!(memory.data_bytes(&(0..4 * HUGE_PAGE)).unwrap(), HUGE_PAGE);
        }
    }
}
