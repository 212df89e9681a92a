//! The part of guest memory that can grow: address space reserved at the start, and what of it the
//! guest has been granted so far.
//!
//! The guest can reach what is granted and nothing else: KVM has no slot for the rest, and the view
//! of guest memory that devices use ends there too. So a guest never takes more memory from the host
//! than its owner has ever granted it, whatever it plugs or writes into its queues.

use crate::kvm::KvmVm;
use crate::layout;
use crate::map_layers::{ACCESS, map_all, map_over};
use crate::memory::{MemoryError, RamRange, not_mapped, reserve, usize_of};
use crate::size::MemorySize;
use devices::virtio::mem::RegionMemory;
use devices::virtio::mmio::SharedMemory;
use rangemap::RangeSet;
use snapshot::MemoryLayers;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestRegionMmap, MmapRegion};

/// Where a machine of this size could grow, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugRange {
    /// Where the guest sees it.
    pub start: GuestAddress,
    /// Bytes.
    pub length: u64,
}

impl HotplugRange {
    /// Behind the RAM, and above 4 GiB; `None` for a machine that cannot grow.
    #[must_use]
    pub fn of(memory: MemorySize, max_memory: MemorySize) -> Option<Self> {
        let length = max_memory.bytes().checked_sub(memory.bytes())?;
        let end_of_ram = crate::memory::ram_ranges(memory).last().map_or(0, end);
        let start = end_of_ram
            .max(layout::HIGH_RAM_START)
            .next_multiple_of(layout::HOTPLUG_ALIGNMENT);
        (length > 0).then_some(Self {
            start: GuestAddress(start),
            length,
        })
    }
}

fn end(range: &RamRange) -> u64 {
    range.start.0 + range.length
}

/// The reserved address space and the granted part of it.
#[derive(Debug)]
pub struct HotplugRegion {
    range: HotplugRange,
    reserved: Arc<MmapRegion>,
    granted: u64,
    inherited: Inherited,
    memory: SharedMemory,
}

/// What of the region is still mapped from a template's files, in bytes from its start.
#[derive(Debug, Clone, Default)]
struct Inherited(Arc<Mutex<RangeSet<u64>>>);

impl Inherited {
    fn lock(&self) -> MutexGuard<'_, RangeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HotplugRegion {
    /// Reserves the address space. Nothing is granted yet.
    ///
    /// # Errors
    /// The host does not give the address space.
    pub fn reserve(range: HotplugRange, memory: SharedMemory) -> Result<Self, MemoryError> {
        Ok(Self {
            range,
            reserved: Arc::new(reserve(range.start, range.length)?),
            granted: 0,
            inherited: Inherited::default(),
            memory,
        })
    }

    /// Puts the saved content of the first `length` bytes there, copy-on-write; in the template's memory
    /// it starts at `offset`. Before they are granted.
    ///
    /// # Errors
    /// A file cannot be mapped.
    pub fn load(&self, memory: &MemoryLayers, offset: u64, length: u64) -> Result<(), MemoryError> {
        let end = offset.checked_add(length);
        let fits = usize::try_from(length).is_ok_and(|length| length <= self.reserved.size());
        let Some(end) = end.filter(|_| fits) else {
            return Err(MemoryError::TooLarge(length));
        };
        // SAFETY: the range is inside the reservation, which is ours and which nobody uses yet; the
        // mapping keeps its address and length.
        unsafe { map_all(self.reserved.as_ptr(), memory, &(offset..end)) }?;
        self.inherited
            .lock()
            .extend((length > 0).then_some(0..length));
        Ok(())
    }

    /// Parts of what is granted, in bytes from the start, where nothing of a template's is mapped.
    #[must_use]
    pub fn replaced(&self) -> Vec<Range<u64>> {
        let granted = 0..self.granted;
        if granted.is_empty() {
            return Vec::new();
        }
        self.inherited.lock().gaps(&granted).collect()
    }

    /// The reserved address space, which stays mapped for as long as this is held.
    #[must_use]
    pub fn reserved(&self) -> Arc<MmapRegion> {
        self.reserved.clone()
    }

    /// Where it is.
    #[must_use]
    pub fn range(&self) -> HotplugRange {
        self.range
    }

    /// Bytes from the start that the guest can reach.
    #[must_use]
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// Lets the guest reach the first `length` bytes. What was granted stays so.
    ///
    /// # Errors
    /// KVM does not take the memory.
    pub fn grant(&mut self, vm: &mut KvmVm, length: u64) -> Result<(), crate::Error> {
        let length = length.min(self.range.length);
        if length <= self.granted {
            return Ok(());
        }
        let view = self.view(length)?;
        let address = GuestAddress(self.range.start.0 + self.granted);
        let offset = usize_of(self.granted)?;
        let host = self.reserved.as_ptr().wrapping_add(offset);
        self.open(offset, length - self.granted)?;
        // SAFETY: the host range is the next part of the reservation, which lives as long as the
        // machine; the guest range was in no slot so far.
        unsafe { vm.add_memory_slot(address, length - self.granted, host) }?;
        self.show(view)?;
        self.granted = length;
        Ok(())
    }

    /// Lets this process, and so the guest, read and write a part of the reservation.
    fn open(&self, offset: usize, length: u64) -> Result<(), MemoryError> {
        let bytes = usize_of(length)?;
        let address = self.reserved.as_ptr().wrapping_add(offset).cast();
        // SAFETY: the caller grants a part of the reservation, which is ours.
        let result = unsafe { libc::mprotect(address, bytes, ACCESS) };
        if result == 0 {
            Ok(())
        } else {
            Err(MemoryError::Grant(io::Error::last_os_error()))
        }
    }

    /// Gives unplugged memory back to the host.
    #[must_use]
    pub fn giver_back(&self) -> Box<dyn RegionMemory> {
        Box::new(GiverBack {
            reserved: self.reserved.clone(),
            inherited: self.inherited.clone(),
        })
    }

    /// The granted part as devices see it.
    fn view(&self, length: u64) -> Result<GuestRegionMmap, MemoryError> {
        let bytes = usize_of(length)?;
        let flags = self.reserved.flags();
        // SAFETY: the range is the beginning of the reservation, open for reading and writing, which
        // the machine drops after everybody who uses this view.
        let view = unsafe { MmapRegion::build_raw(self.reserved.as_ptr(), bytes, ACCESS, flags) };
        let view = view.map_err(not_mapped(self.range.start, length))?;
        GuestRegionMmap::new(view, self.range.start).ok_or(MemoryError::TooLarge(length))
    }

    /// Puts the view in the place of the one before.
    fn show(&self, view: GuestRegionMmap) -> Result<(), MemoryError> {
        let exclusive = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = (*self.memory.memory()).clone();
        if self.granted > 0 {
            let (without, _) = all
                .remove_region(self.range.start, self.granted)
                .map_err(MemoryError::Regions)?;
            all = without;
        }
        let all = all
            .insert_region(Arc::new(view))
            .map_err(MemoryError::Regions)?;
        exclusive.replace(all);
        Ok(())
    }
}

/// Discards parts of the reservation.
#[derive(Debug)]
struct GiverBack {
    reserved: Arc<MmapRegion>,
    inherited: Inherited,
}

impl RegionMemory for GiverBack {
    /// Maps fresh anonymous memory over the range: content that came from a template's file would be
    /// back after a plain MADV_DONTNEED.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.checked_add(length);
        let end = end.filter(|end| *end <= self.reserved.size() as u64);
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(length).ok());
        let Some((end, (start, bytes))) = end.zip(range) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range is inside the reservation; the new mapping has the same access, and the
        // guest has said that it uses none of the content.
        unsafe {
            map_over(
                self.reserved.as_ptr().wrapping_add(start),
                bytes,
                flags,
                -1,
                0,
            )
        }?;
        if offset < end {
            self.inherited.lock().remove(offset..end);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::BareVm;
    use crate::memory::{MappedRam, MemoryBacking, map};
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use vm_memory::{Bytes, GuestMemoryAtomic, GuestMemoryMmap};

    const MIB: u64 = 1 << 20;

    fn mib(n: u64) -> MemorySize {
        MemorySize::from_mib(n).unwrap()
    }

    fn machine() -> (MappedRam, KvmVm, HotplugRegion) {
        let ram = map(mib(32), &MemoryBacking::Anonymous).unwrap();
        let vm = KvmVm::new(BareVm::create().unwrap(), &ram).unwrap();
        let range = HotplugRange::of(mib(32), mib(544)).unwrap();
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::clone(&ram));
        (ram, vm, HotplugRegion::reserve(range, memory).unwrap())
    }

    #[test]
    fn region_is_above_all_ram_and_aligned() {
        let of = |memory, max| HotplugRange::of(mib(memory), mib(max));
        let start = |memory| of(memory, memory + 128).unwrap().start.0 >> 30;
        assert_eq!((start(32), start(3072), start(4096)), (4, 4, 5));
        assert_eq!(start(4098), 6);
        assert_eq!(of(256, 256), None);
        assert_eq!(of(256, 128), None);
    }

    #[test]
    fn guest_reaches_what_is_granted_and_no_more() {
        let (_ram, mut vm, mut region) = machine();
        let start = region.range().start;
        let reaches = |region: &HotplugRegion, offset: u64| {
            let memory = region.memory.memory();
            memory
                .write_obj(7u8, GuestAddress(start.0 + offset))
                .is_ok()
        };
        assert!(!reaches(&region, 0));
        region.grant(&mut vm, 128 * MIB).unwrap();
        assert!(reaches(&region, 0) && !reaches(&region, 128 * MIB));
        region.grant(&mut vm, 256 * MIB).unwrap();
        assert!(reaches(&region, 128 * MIB));
        region.grant(&mut vm, 128 * MIB).unwrap();
        assert_eq!(region.granted(), 256 * MIB);
        let byte: u8 = region.memory.memory().read_obj(start).unwrap();
        assert_eq!(byte, 7, "growing keeps what is there");
        region.grant(&mut vm, u64::MAX).unwrap();
        assert_eq!(region.granted(), 512 * MIB);
    }

    #[test]
    fn discarded_memory_is_zero_even_when_it_came_from_a_file() {
        let (_ram, mut vm, mut region) = machine();
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * MIB).unwrap();
        file.write_all_at(b"saved", 4 * MIB).unwrap();
        let saved = MemoryLayers::plain(file, Path::new("memory")).unwrap();
        region.load(&saved, 4 * MIB, 4 * MIB).unwrap();
        region.grant(&mut vm, 8 * MIB).unwrap();
        let added = 4 * MIB..8 * MIB;
        assert_eq!(region.replaced(), std::slice::from_ref(&added));
        let read = |region: &HotplugRegion| {
            let mut bytes = [0; 5];
            let memory = region.memory.memory();
            memory.read_slice(&mut bytes, region.range().start).unwrap();
            bytes
        };
        assert_eq!(&read(&region), b"saved");
        let mut giver_back = region.giver_back();
        giver_back.discard(0, 2 * MIB).unwrap();
        assert_eq!(read(&region), [0; 5]);
        assert_eq!(region.replaced(), [0..2 * MIB, added]);
        for (offset, length) in [(0, 513 * MIB), (511 * MIB, 2 * MIB), (u64::MAX, 2 * MIB)] {
            assert!(giver_back.discard(offset, length).is_err());
        }
    }
}
