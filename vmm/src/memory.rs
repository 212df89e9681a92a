//! Guest RAM: its regions around the 32-bit hole, and what is behind them on the host.

use crate::layout::{HIGH_RAM_START, LOW_RAM_END};
use crate::map_layers::{ACCESS, COPY_ON_WRITE, map_over, map_overlays};
use crate::size::MemorySize;
use snapshot::MemoryLayers;
use std::fs::File;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// What the host maps at once where it can, in bytes.
pub const HUGE_PAGE: u64 = 2 << 20;

/// What holds the guest's RAM.
#[derive(Debug)]
pub enum MemoryBacking {
    /// Memory of this process alone.
    Anonymous,
    /// A template in the making: the guest's writes go to the file, which has the RAM's length.
    Shared(Arc<File>),
    /// A clone: files opened read-only, with the guest's writes kept away from them.
    CopyOnWrite(Arc<MemoryLayers>),
}

impl MemoryBacking {
    /// Checks that there are `expected` bytes: files that are too short would kill this process with
    /// SIGBUS, much later.
    ///
    /// # Errors
    /// The files have another length.
    pub fn check_length(&self, expected: u64) -> Result<(), MemoryError> {
        let found = match self {
            Self::Anonymous => return Ok(()),
            Self::Shared(file) => file.metadata().map_err(MemoryError::Stat)?.len(),
            Self::CopyOnWrite(layers) => layers.length(),
        };
        if found == expected {
            Ok(())
        } else {
            Err(MemoryError::FileLength { found, expected })
        }
    }
}

/// Guest RAM cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host does not give the address space.
    #[error("Cannot map {length} bytes of guest memory at {address:#x}")]
    Map {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        length: u64,
        /// The reason.
        #[source]
        source: MmapRegionError,
    },
    /// The host does not map it.
    #[error("Cannot map {length} bytes of guest memory")]
    Host {
        /// Bytes.
        length: u64,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// Regions overlap or overflow.
    #[error("Guest memory regions do not fit together")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
    /// The file is not as long as the RAM; reading behind its end would be fatal.
    #[error("Memory file has {found} bytes, expected {expected}")]
    FileLength {
        /// The file's length.
        found: u64,
        /// The RAM's length.
        expected: u64,
    },
    /// The host does not give the memory.
    #[error("The host does not give the added memory")]
    Grant(#[source] std::io::Error),
    /// It is not known which pages were written.
    #[error("Cannot read which pages of guest memory were written (/proc/self/pagemap)")]
    PageMap(#[source] std::io::Error),
    /// The guest's memory cannot be read.
    #[error("Cannot read guest memory")]
    Read(#[source] vm_memory::GuestMemoryError),
    /// Pages that were borrowed from the guest cannot be given back.
    #[error("Cannot put back what was in guest memory")]
    GiveBack(#[source] vm_memory::GuestMemoryError),
    /// The copy cannot be written.
    #[error("Cannot write the copy of guest memory")]
    Write(#[source] std::io::Error),
    /// Nobody wants the copy any more.
    #[error("The copy of guest memory was given up")]
    GivenUp,
    /// A template's memory file cannot be mapped.
    #[error("Cannot map the saved content of guest memory")]
    Load(#[source] std::io::Error),
    /// The file cannot be looked at.
    #[error("Cannot read the length of the memory file")]
    Stat(#[source] std::io::Error),
    /// A template's memory files cannot be looked at.
    #[error("Cannot tell where a template's memory has data")]
    Data(#[source] snapshot::FileError),
    /// Larger than an address of this process.
    #[error("{0} bytes of guest memory are more than this host can address")]
    TooLarge(u64),
}

/// One contiguous piece of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Where the guest sees it.
    pub start: GuestAddress,
    /// Bytes.
    pub length: u64,
    /// Where it is in the memory file.
    pub file_offset: u64,
}

/// Splits RAM around the MMIO hole below 4 GiB. The file holds the pieces one after the other.
#[must_use]
pub fn ram_ranges(size: MemorySize) -> Vec<RamRange> {
    let low = size.bytes().min(LOW_RAM_END);
    let high = size.bytes() - low;
    let mut ranges = vec![RamRange {
        start: GuestAddress(0),
        length: low,
        file_offset: 0,
    }];
    if high > 0 {
        let start = GuestAddress(HIGH_RAM_START);
        ranges.push(RamRange {
            start,
            length: high,
            file_offset: low,
        });
    }
    ranges
}

/// Guest RAM that is mapped for as long as this or one of its clones is there.
#[derive(Debug, Clone)]
pub struct MappedRam {
    memory: GuestMemoryMmap,
    space: AddressSpace,
}

/// The addresses of this process at which guest memory is. What is there stays mapped until the last clone is
/// dropped.
#[derive(Debug, Clone, Default)]
pub struct AddressSpace(Vec<Arc<MmapRegion>>);

impl AddressSpace {
    /// With some more.
    #[must_use]
    pub fn and(mut self, more: Option<Arc<MmapRegion>>) -> Self {
        self.0.extend(more);
        self
    }
}

impl MappedRam {
    /// Keeps the RAM mapped: for whoever has a copy of the [`GuestMemoryMmap`].
    #[must_use]
    pub fn space(&self) -> AddressSpace {
        self.space.clone()
    }
}

impl Deref for MappedRam {
    type Target = GuestMemoryMmap;

    fn deref(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

/// Maps guest RAM. Huge pages of the host are huge pages of the guest: where one ends, the other does.
///
/// # Errors
/// The host refuses the mapping.
pub fn map(size: MemorySize, backing: &MemoryBacking) -> Result<MappedRam, MemoryError> {
    let (file, flags) = match backing {
        MemoryBacking::Anonymous => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        MemoryBacking::Shared(file) => (Some(file), libc::MAP_SHARED),
        MemoryBacking::CopyOnWrite(layers) => (Some(layers.deepest()), COPY_ON_WRITE),
    };
    let mut space = AddressSpace::default();
    let regions = ram_ranges(size).into_iter().map(|range| {
        let reserved = reserve(range.start, range.length.saturating_add(HUGE_PAGE))?;
        let region = map_range(range, &reserved, file, flags)?;
        space.0.push(Arc::new(reserved));
        if let MemoryBacking::CopyOnWrite(layers) = backing {
            let in_file = range.file_offset..range.file_offset + range.length;
            // SAFETY: the region was just mapped, with the length of the range.
            unsafe { map_overlays(region.as_ptr(), layers, &in_file) }?;
        }
        Ok(region)
    });
    let regions = regions.collect::<Result<Vec<_>, _>>()?;
    let memory = GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Regions)?;
    Ok(MappedRam { memory, space })
}

/// Addresses of this process for what the guest is to see at `guest`, with nothing there yet. They do not count as
/// memory: a host that does not overcommit would otherwise count every clone at its largest.
pub(crate) fn reserve(guest: GuestAddress, length: u64) -> Result<MmapRegion, MemoryError> {
    MmapRegionBuilder::new(usize_of(length)?)
        .with_mmap_prot(libc::PROT_NONE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
        .map_err(not_mapped(guest, length))
}

/// The first address of a reservation at which a huge page can be. It may be one huge page behind the beginning.
pub(crate) fn huge_page_in(reserved: &MmapRegion) -> Result<*mut u8, MemoryError> {
    let start = reserved.as_ptr();
    Ok(start.wrapping_add(start.align_offset(usize_of(HUGE_PAGE)?)))
}

pub(crate) fn not_mapped(
    guest: GuestAddress,
    length: u64,
) -> impl FnOnce(MmapRegionError) -> MemoryError {
    move |source| MemoryError::Map {
        address: guest.0,
        length,
        source,
    }
}

pub(crate) fn usize_of(bytes: u64) -> Result<usize, MemoryError> {
    usize::try_from(bytes).map_err(|_| MemoryError::TooLarge(bytes))
}

fn map_range(
    range: RamRange,
    reserved: &MmapRegion,
    file: Option<&Arc<File>>,
    flags: i32,
) -> Result<GuestRegionMmap, MemoryError> {
    let length = usize_of(range.length)?;
    let start = huge_page_in(reserved)?;
    let flags = flags | libc::MAP_NORESERVE;
    let descriptor = file.map_or(-1, |file| file.as_raw_fd());
    let offset = range.file_offset;
    let in_file = libc::off_t::try_from(offset).map_err(|_| MemoryError::TooLarge(offset))?;
    // SAFETY: the reservation is ours, nobody uses it yet, and it is longer than the range by what the start was
    // moved at most.
    unsafe { map_over(start, length, flags | libc::MAP_FIXED, descriptor, in_file) }.map_err(
        |source| MemoryError::Host {
            length: range.length,
            source,
        },
    )?;
    // SAFETY: the range was just mapped, and stays so until the reservation is dropped, which whoever uses guest
    // memory holds.
    let mut builder = unsafe { MmapRegionBuilder::new(length).with_raw_mmap_pointer(start) }
        .with_mmap_prot(ACCESS)
        .with_mmap_flags(flags);
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::from_arc(file.clone(), offset));
    }
    let mapping = builder
        .build()
        .map_err(not_mapped(range.start, range.length))?;
    GuestRegionMmap::new(mapping, range.start).ok_or(MemoryError::TooLarge(range.length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::path::Path;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    fn mib(n: u64) -> MemorySize {
        MemorySize::from_mib(n).unwrap()
    }

    #[test]
    fn ram_is_split_around_the_hole() {
        assert_eq!(ram_ranges(mib(3072)).len(), 1);
        let ranges = ram_ranges(mib(5120));
        assert_eq!(ranges[0].length, 3 << 30);
        assert_eq!(ranges[1].start, GuestAddress(4 << 30));
        assert_eq!(
            (ranges[1].length, ranges[1].file_offset),
            (2 << 30, 3 << 30)
        );
    }

    #[test]
    fn huge_pages_of_host_and_guest_end_together() {
        for size in [32, 3074] {
            let ram = map(mib(size), &MemoryBacking::Anonymous).unwrap();
            let space = ram.space();
            for region in ram.iter() {
                let bits = region.as_ptr() as u64 ^ region.start_addr().0;
                assert_eq!(bits % HUGE_PAGE, 0, "{size} MiB");
            }
            let memory = ram.deref().clone();
            drop(ram);
            memory.write_obj(1_u8, memory.last_addr()).unwrap();
            drop(space);
        }
    }

    #[test]
    fn copy_on_write_keeps_writes_from_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(32 << 20).unwrap();
        let arc = |file: &File| Arc::new(file.try_clone().unwrap());
        let shared = map(mib(32), &MemoryBacking::Shared(arc(&file))).unwrap();
        shared
            .write_slice(b"template", GuestAddress(0x1000))
            .unwrap();

        let layers = MemoryLayers::plain(file.try_clone().unwrap(), Path::new("memory")).unwrap();
        let clone = map(mib(32), &MemoryBacking::CopyOnWrite(Arc::new(layers))).unwrap();
        let mut seen = [0; 8];
        clone.read_slice(&mut seen, GuestAddress(0x1000)).unwrap();
        assert_eq!(&seen, b"template");
        clone
            .write_slice(b"clone!!!", GuestAddress(0x1000))
            .unwrap();

        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(&bytes[0x1000..0x1008], b"template");
        assert_eq!(clone.num_regions(), 1);
    }

    #[test]
    fn file_of_another_length_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len((32 << 20) - 4096).unwrap();
        let backing = MemoryBacking::Shared(Arc::new(file));
        let error = backing.check_length(32 << 20).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Memory file has 33550336 bytes, expected 33554432"
        );
    }
}
