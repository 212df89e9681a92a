//! The balloon device of a machine: what the guest does not use goes back to the host, and what it tells of
//! its memory.

use crate::kvm::KvmVm;
use crate::layout::VirtioSlot;
use crate::platform::{PlatformError, lock};
use crate::virtio_part::VirtioPart;
use devices::virtio::balloon::{Balloon, FreeMemory, GuestMemoryStats, StatsHandle};
use devices::virtio::mmio::{MmioTransport, SharedMemory};
use devices::virtio::state::TransportState;
use rustix::mm::{Advice, madvise};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend};

/// Its section of the state file: the device has none of its own.
pub(crate) const SECTION: &str = "balloon-transport";

/// The device as after power-on, or as it was saved.
pub(crate) fn new(
    vm: &KvmVm,
    memory: &SharedMemory,
    state: Option<&TransportState>,
) -> Result<VirtioPart<Balloon>, PlatformError> {
    let balloon = Balloon::new(Box::new(Ram(memory.clone())))?;
    VirtioPart::new(vm, memory, VirtioSlot::Balloon, balloon, state)
}

/// The guest's memory, wherever it is mapped from.
#[derive(Debug)]
struct Ram(SharedMemory);

impl FreeMemory for Ram {
    /// A clone finds its template's content there afterwards, which it has seen before; other guests find zeros.
    fn give_back(&self, start: GuestAddress, length: u64) -> io::Result<()> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let length = usize::try_from(length).map_err(|_| outside())?;
        let memory = self.0.memory();
        let region = memory.find_region(start).ok_or_else(outside)?;
        let slice = memory.get_slice(start, length).map_err(|_| outside())?;
        let advice = if region.flags() & libc::MAP_SHARED == 0 {
            Advice::LinuxDontNeed
        } else {
            Advice::LinuxRemove
        };
        let guard = slice.ptr_guard_mut();
        // SAFETY: the range is mapped guest memory for as long as `memory` is there. Nobody holds a reference
        // into guest memory, and the guest, the only one to whom the content matters, has said that it
        // does not use it.
        unsafe { madvise(guard.as_ptr().cast(), length, advice) }?;
        Ok(())
    }
}

/// A question to the guest about its memory. It needs no access to the machine, so that waiting keeps nobody
/// from using that.
#[derive(Clone, Debug)]
pub struct StatsRequest {
    device: Arc<Mutex<MmioTransport<Balloon>>>,
    stats: StatsHandle,
}

impl StatsRequest {
    pub(crate) fn new(part: &VirtioPart<Balloon>) -> Self {
        let device = part.shared();
        let stats = lock(&device).device().stats();
        Self { device, stats }
    }

    /// Asks the guest, and waits for its answer; none when it has not answered at the deadline.
    #[must_use]
    pub fn ask(&self, deadline: Duration) -> Option<GuestMemoryStats> {
        let before = self.stats.count();
        lock(&self.device).with_rings(Balloon::ask_for_stats);
        self.stats.wait_after(before, deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{AddressSpace, MemoryBacking, map};
    use crate::size::MemorySize;
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, GuestMemoryAtomic, GuestMemoryMmap};

    const AT: GuestAddress = GuestAddress(0x40_0000);

    fn ram(backing: &MemoryBacking) -> (Ram, AddressSpace) {
        let size = MemorySize::from_mib(32).unwrap();
        let mapped = map(size, backing).unwrap();
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::clone(&mapped));
        (Ram(memory), mapped.space())
    }

    fn byte(ram: &Ram) -> u8 {
        ram.0.memory().read_obj(AT).unwrap()
    }

    #[test]
    fn memory_of_a_booted_guest_goes_back() {
        let (ram, _space) = ram(&MemoryBacking::Anonymous);
        ram.0.memory().write_obj(7_u8, AT).unwrap();
        ram.give_back(AT, 4096).unwrap();
        assert_eq!(byte(&ram), 0);
        let beyond = ram.give_back(GuestAddress((32 << 20) - 4096), 8192);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn memory_of_a_template_becomes_a_hole_of_its_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(32 << 20).unwrap();
        let (ram, _space) = ram(&MemoryBacking::Shared(Arc::new(file.try_clone().unwrap())));
        ram.0.memory().write_obj(7_u8, AT).unwrap();
        let blocks = |file: &File| file.metadata().unwrap().blocks();
        assert!(blocks(&file) > 0);
        ram.give_back(AT, 2 << 20).unwrap();
        assert_eq!((blocks(&file), byte(&ram)), (0, 0));
    }
}
