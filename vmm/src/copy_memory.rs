//! Writing a copy of a machine's memory: that of a VM whose memory is not a template's file already.

use crate::Error;
use crate::hotplug_region::HotplugRegion;
use crate::machine::Machine;
use crate::memory::{AddressSpace, MemoryError, RamRange, ram_ranges};
use crate::pagemap;
use snapshot::{OwnMemory, Wanted};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

/// What is looked at as a whole when zeros are left out.
const PAGE: usize = 4096;
const ZERO_PAGE: [u8; PAGE] = [0; PAGE];
/// What is copied at once, in bytes.
const CHUNK: u64 = 1 << 20;

impl Machine {
    /// Bytes of the machine's memory file: the RAM it has booted with, and behind it all of the
    /// region for added memory that was ever granted.
    #[must_use]
    pub fn memory_file_bytes(&self) -> u64 {
        let granted = self.region.as_ref().map_or(0, |region| region.granted());
        self.memory_size.bytes() + granted
    }

    /// What in the memory file of this machine is not as in that of its template, if it is a clone. The machine
    /// has to be paused, until it is copied.
    ///
    /// # Errors
    /// The kernel does not tell which pages were written.
    pub fn own_memory(&self) -> Result<OwnMemory, Error> {
        let memory = self.memory.memory();
        let ram = self.memory_size.bytes();
        let mut own = OwnMemory::default();
        // Of added memory only what is plugged: the guest must not find again what it has given back.
        let plugged = self.plugged_ranges();
        for range in ram_ranges(self.memory_size).into_iter().chain(plugged) {
            own.written.extend(own_parts(&memory, range)?);
        }
        if !self.is_clone {
            own.replaced.push(0..ram);
        }
        if let Some(region) = &self.region {
            let parts = region.replaced().into_iter();
            own.replaced
                .extend(parts.map(|part| ram + part.start..ram + part.end));
        }
        Ok(own)
    }

    /// The memory, to be copied in another thread. The machine has to stay paused until that is done.
    #[must_use]
    pub fn memory_source(&self) -> MemorySource {
        MemorySource {
            memory: self.memory.memory().into_inner(),
            spans: self.spans(),
            _space: self.address_space(),
        }
    }

    fn address_space(&self) -> AddressSpace {
        let region = self.region.as_ref().map(HotplugRegion::reserved);
        self.space.clone().and(region)
    }

    /// Everything that is in the memory file.
    fn spans(&self) -> Vec<RamRange> {
        let mut spans = ram_ranges(self.memory_size);
        spans.extend(self.region.as_ref().map(|region| RamRange {
            start: region.range().start,
            length: region.granted(),
            file_offset: self.memory_size.bytes(),
        }));
        spans
    }

    /// What the guest has plugged of the region behind its RAM.
    fn plugged_ranges(&self) -> Vec<RamRange> {
        let Some(region) = &self.region else {
            return Vec::new();
        };
        let start = region.range().start.0;
        let plugged = self.platform.plugged_ranges().into_iter();
        let range = |(offset, length)| RamRange {
            start: GuestAddress(start + offset),
            length,
            file_offset: self.memory_size.bytes() + offset,
        };
        plugged.map(range).collect()
    }
}

/// The memory of a machine, which stays mapped for as long as this is there.
#[derive(Debug)]
pub struct MemorySource {
    memory: Arc<GuestMemoryMmap>,
    spans: Vec<RamRange>,
    /// Keeps it mapped.
    _space: AddressSpace,
}

impl MemorySource {
    /// Copies these ranges of the guest's memory to a memory file of [`Machine::memory_file_bytes`] that is
    /// empty there, as long as that is `wanted`. Pages of zeros stay holes.
    ///
    /// # Errors
    /// The file cannot be written, or the copy was given up.
    pub fn copy_to(
        &self,
        file: &File,
        ranges: &[Range<u64>],
        wanted: Wanted<'_>,
    ) -> Result<(), MemoryError> {
        for range in ranges {
            for span in &self.spans {
                if let Some(part) = part_of(span, range) {
                    copy(&self.memory, part, file, wanted)?;
                }
            }
        }
        Ok(())
    }
}

/// The parts of `range` that this process has pages of its own for, as they are in the memory file.
pub(crate) fn own_parts(
    memory: &GuestMemoryMmap,
    range: RamRange,
) -> Result<Vec<Range<u64>>, MemoryError> {
    parts(memory, range, pagemap::own_ranges)
}

/// The parts of `range` that this process has in its page tables, as they are in the memory file.
pub(crate) fn present_parts(
    memory: &GuestMemoryMmap,
    range: RamRange,
) -> Result<Vec<Range<u64>>, MemoryError> {
    parts(memory, range, pagemap::present_ranges)
}

fn parts(
    memory: &GuestMemoryMmap,
    range: RamRange,
    ranges: impl Fn(*const u8, usize) -> io::Result<Vec<Range<usize>>>,
) -> Result<Vec<Range<u64>>, MemoryError> {
    let Some(region) = memory.find_region(range.start) else {
        return Ok(Vec::new());
    };
    let usize_of = |bytes| usize::try_from(bytes).map_err(|_| MemoryError::TooLarge(bytes));
    let offset = usize_of(range.start.0 - region.start_addr().0)?;
    let address = region.as_ptr().wrapping_add(offset);
    let parts = ranges(address, usize_of(range.length)?).map_err(MemoryError::PageMap)?;
    let in_file = |bytes: usize| range.file_offset + bytes as u64;
    let parts = parts.into_iter();
    Ok(parts
        .map(|part| in_file(part.start)..in_file(part.end))
        .collect())
}

/// What of a range of the memory file is in a span.
pub(crate) fn part_of(span: &RamRange, range: &Range<u64>) -> Option<RamRange> {
    let start = range.start.max(span.file_offset);
    let end = range.end.min(span.file_offset + span.length);
    (start < end).then(|| RamRange {
        start: GuestAddress(span.start.0 + (start - span.file_offset)),
        length: end - start,
        file_offset: start,
    })
}

fn copy(
    memory: &GuestMemoryMmap,
    range: RamRange,
    file: &File,
    wanted: Wanted<'_>,
) -> Result<(), MemoryError> {
    let mut buffer = Vec::new();
    let mut done = 0;
    while done < range.length {
        if !wanted() {
            return Err(MemoryError::GivenUp);
        }
        let length = (range.length - done).min(CHUNK);
        buffer.resize(usize::try_from(length).unwrap_or(PAGE), 0);
        memory
            .read_slice(&mut buffer, GuestAddress(range.start.0 + done))
            .map_err(MemoryError::Read)?;
        write_pages(file, &buffer, range.file_offset + done).map_err(MemoryError::Write)?;
        done += buffer.len() as u64;
    }
    Ok(())
}

/// Writes runs of pages that are not all zero.
fn write_pages(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut run = 0;
    let mut position = 0;
    for page in bytes.chunks(PAGE) {
        if page == &ZERO_PAGE[..page.len()] {
            file.write_all_at(&bytes[run..position], offset + run as u64)?;
            run = position + page.len();
        }
        position += page.len();
    }
    file.write_all_at(&bytes[run..position], offset + run as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn pages_of_zeros_stay_holes() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE as u64).unwrap();
        let mut bytes = vec![0; 32 * PAGE];
        for page in [0, 1, 7, 31] {
            bytes[page * PAGE + 5] = 1 + u8::try_from(page).unwrap();
        }
        write_pages(&file, &bytes, 16 * PAGE as u64).unwrap();
        let mut written = Vec::new();
        file.read_to_end(&mut written).unwrap();
        assert_eq!(written[16 * PAGE..48 * PAGE], bytes);
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 * PAGE as u64);
    }

    #[test]
    fn a_copy_that_is_given_up_writes_no_more() {
        let file = tempfile::tempfile().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PAGE)]).unwrap();
        memory.write_obj(1_u8, GuestAddress(5)).unwrap();
        let source = MemorySource {
            memory: Arc::new(memory),
            spans: vec![RamRange {
                start: GuestAddress(0),
                length: PAGE as u64,
                file_offset: 0,
            }],
            _space: AddressSpace::default(),
        };
        let whole = 0..PAGE as u64;
        let copy = |wanted: bool| source.copy_to(&file, std::slice::from_ref(&whole), &|| wanted);
        assert!(matches!(copy(false), Err(MemoryError::GivenUp)));
        assert_eq!(file.metadata().unwrap().len(), 0);
        copy(true).unwrap();
        assert_eq!(file.metadata().unwrap().len(), PAGE as u64);
    }
}
