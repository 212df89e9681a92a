//! Copies of the pages that clones write, before one runs.
//!
//! A page that a guest reads and then writes costs three exits: it is mapped for reading, copied, which takes
//! the mapping away, and mapped again. With a copy made beforehand it costs one.

use crate::copy_memory::part_of;
use crate::memory::{RamRange, ram_ranges};
use crate::size::MemorySize;
use rustix::mm::{Advice, madvise};
use snapshot::WorkingSet;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

/// Gives a clone its own copies of these pages, before KVM knows the memory. What cannot be copied now is
/// copied when the guest writes it.
pub(crate) fn copy_working_set(memory: &GuestMemoryMmap, size: MemorySize, set: &WorkingSet) {
    for range in ram_ranges(size) {
        let runs = set.written().iter();
        let mut parts = runs.filter_map(|run| part_of(&range, run));
        if !parts.all(|part| copy_run(memory, part)) {
            return;
        }
    }
}

/// Whether it is worth to go on.
fn copy_run(memory: &GuestMemoryMmap, run: RamRange) -> bool {
    let Ok(length) = usize::try_from(run.length) else {
        return false;
    };
    let Ok(slice) = memory.get_slice(run.start, length) else {
        return false;
    };
    // SAFETY: the range is mapped guest memory for as long as `memory` is there, and the advice changes no
    // content: it does what a write to each page would do, without a signal where that fails.
    let advised = unsafe {
        madvise(
            slice.ptr_guard_mut().as_ptr().cast(),
            length,
            Advice::LinuxPopulateWrite,
        )
    };
    if let Err(error) = &advised {
        tracing::debug!(%error, "No copies of pages ahead of time");
    }
    advised.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy_memory::own_parts;
    use crate::memory::{MemoryBacking, map};
    use snapshot::MemoryLayers;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn copies_are_made_of_what_is_named_with_its_content() {
        let size = MemorySize::from_mib(32).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(size.bytes()).unwrap();
        file.write_all_at(b"template", 0x5000).unwrap();
        let layers = MemoryLayers::plain(file, Path::new("memory")).unwrap();
        let memory = map(size, &MemoryBacking::CopyOnWrite(Arc::new(layers))).unwrap();
        let beyond = size.bytes() - 0x1000..size.bytes() + 0x4000;
        let set = WorkingSet::new(vec![0x5000..0x7000, beyond], Vec::new());
        copy_working_set(&memory, size, &set);

        let whole = RamRange {
            start: GuestAddress(0),
            length: size.bytes(),
            file_offset: 0,
        };
        let own = own_parts(&memory, whole).unwrap();
        assert_eq!(own, [0x5000..0x7000, size.bytes() - 0x1000..size.bytes()]);
        let mut seen = [0; 8];
        memory.read_slice(&mut seen, GuestAddress(0x5000)).unwrap();
        assert_eq!(&seen, b"template");
    }
}
