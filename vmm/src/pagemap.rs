//! Which pages of a mapping are this process's own, and not those of the file behind it: the kernel's
//! `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
const PAGE: usize = 4096;
/// Bytes of an entry.
const ENTRY: usize = 8;
/// Pages that are asked about at once.
const BATCH: usize = 8192;

const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;

/// The parts of `length` bytes at `address` that are this process's own, as offsets in bytes, in order and
/// apart from each other. In a private mapping of a file these are the pages that were written.
///
/// # Errors
/// The kernel does not tell.
pub fn own_ranges(address: *const u8, length: usize) -> io::Result<Vec<Range<usize>>> {
    ranges(address, length, is_own)
}

/// The parts that this process has in its page tables, in the same way: what was touched, and what of a file the
/// kernel mapped along with it.
///
/// # Errors
/// The kernel does not tell.
pub fn present_ranges(address: *const u8, length: usize) -> io::Result<Vec<Range<usize>>> {
    ranges(address, length, |entry| entry & PRESENT != 0)
}

fn ranges(
    address: *const u8,
    length: usize,
    is_wanted: impl Fn(u64) -> bool,
) -> io::Result<Vec<Range<usize>>> {
    let map = File::open("/proc/self/pagemap")?;
    let first = address as usize / PAGE;
    let pages = length.div_ceil(PAGE);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut entries = vec![0; BATCH * ENTRY];
    let mut page = 0;
    while page < pages {
        let batch = &mut entries[..BATCH.min(pages - page) * ENTRY];
        map.read_exact_at(batch, ((first + page) * ENTRY) as u64)?;
        let (batch, _) = batch.as_chunks::<ENTRY>();
        for entry in batch {
            if is_wanted(u64::from_ne_bytes(*entry)) {
                let start = page * PAGE;
                let end = (start + PAGE).min(length);
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
            page += 1;
        }
    }
    Ok(ranges)
}

fn is_own(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & OF_A_FILE == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemoryBacking, map};
    use crate::size::MemorySize;
    use snapshot::MemoryLayers;
    use std::path::Path;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn written_pages_of_a_private_mapping_are_its_own_and_read_ones_are_not() {
        let size = MemorySize::from_mib(32).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(size.bytes()).unwrap();
        file.write_all_at(&[7; 64 * PAGE], 0).unwrap();
        let layers = MemoryLayers::plain(file, Path::new("memory")).unwrap();
        let memory = map(size, &MemoryBacking::CopyOnWrite(Arc::new(layers))).unwrap();
        let page = |number: usize| GuestAddress((number * PAGE) as u64);
        let mut seen = [0; 8];
        for number in 0..64 {
            memory.read_slice(&mut seen, page(number)).unwrap();
        }
        for number in [3, 4, 10, 8191] {
            memory.write_slice(b"mine", page(number)).unwrap();
        }
        let region = memory.iter().next().unwrap();
        let length = usize::try_from(region.len()).unwrap();
        let own = own_ranges(region.as_ptr(), length).unwrap();
        let expected = [3..5, 10..11, 8191..8192].map(|r| r.start * PAGE..r.end * PAGE);
        assert_eq!(own, expected);
    }
}
