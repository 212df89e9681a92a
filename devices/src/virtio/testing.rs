//! The driver's side of a virtqueue, with RING_EVENT_IDX, for the tests of the devices and for those
//! of hostile guests (`tests/hostile`).
//!
//! It is for tests: it panics when the rings are not where it put them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

/// Descriptors per buffer slot.
pub const PER_SLOT: u16 = 4;
/// Bytes per buffer slot.
const SLOT: u64 = 0x2_0000;

/// The driver's side of one virtqueue.
#[derive(Debug)]
pub struct Ring {
    size: u16,
    base: u64,
    buffers: u64,
    avail: u16,
    used: u16,
    /// Slots whose buffers the device does not have.
    pub free: VecDeque<u16>,
}

impl Ring {
    /// Queue `index` of a device, with `size` entries: its rings and buffers have their own place.
    pub fn new(index: u16, size: u16) -> Self {
        let base = 0x1_0000 * (u64::from(index) + 1);
        let buffers = 0x10_0000 + u64::from(index) * 0x100_0000;
        let free = (0..size / PER_SLOT).collect();
        Self {
            size,
            base,
            buffers,
            avail: 0,
            used: 0,
            free,
        }
    }

    /// Where the descriptor table is.
    pub fn descriptors(&self) -> GuestAddress {
        GuestAddress(self.base)
    }

    /// Where the available ring is.
    pub fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    /// Where the used ring is.
    pub fn used_ring(&self) -> u64 {
        self.base + 0x8000
    }

    /// The device's side, as the driver sets it up.
    pub fn queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_size(self.size);
        queue
            .try_set_desc_table_address(GuestAddress(self.base))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail_ring()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used_ring()))
            .unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    }

    /// Zeroes the rings, as a driver does before it uses them.
    pub fn clear(&self, memory: &GuestMemoryMmap) {
        memory
            .write_slice(&[0; 0x1_0000], GuestAddress(self.base))
            .unwrap();
    }

    /// Claims more available buffers than the ring has.
    pub fn break_available(&self, memory: &GuestMemoryMmap) {
        let index = self.avail.wrapping_add(self.size + 1);
        memory
            .write_obj(index, GuestAddress(self.avail_ring() + 2))
            .unwrap();
    }

    /// The first buffer of a slot.
    pub fn slot_address(&self, slot: u16) -> GuestAddress {
        // 64 slots of 128 KiB are 8 MiB: rings 16 MiB apart do not overlap.
        GuestAddress(self.buffers + u64::from(slot) * SLOT)
    }

    /// Makes a chain available; true when the device wants a doorbell.
    pub fn add(
        &mut self,
        memory: &GuestMemoryMmap,
        slot: u16,
        lengths: &[u32],
        write: bool,
    ) -> bool {
        let mut address = self.slot_address(slot);
        let head = slot * PER_SLOT;
        assert!(lengths.len() <= usize::from(PER_SLOT));
        for (number, length) in (0..).zip(lengths) {
            let more = usize::from(number) + 1 < lengths.len();
            let flags = u16::from(more) | if write { 2 } else { 0 };
            self.put_descriptor(memory, head + number, address, *length, flags);
            address = address.unchecked_add(u64::from(*length));
        }
        self.make_available(memory, head)
    }

    /// Writes one descriptor, whose next one is the one behind it.
    pub fn put_descriptor(
        &self,
        memory: &GuestMemoryMmap,
        number: u16,
        address: GuestAddress,
        length: u32,
        flags: u16,
    ) {
        let at = GuestAddress(self.base + 16 * u64::from(number));
        memory.write_obj(address.0, at).unwrap();
        memory.write_obj(length, at.unchecked_add(8)).unwrap();
        memory.write_obj(flags, at.unchecked_add(12)).unwrap();
        memory.write_obj(number + 1, at.unchecked_add(14)).unwrap();
    }

    /// Makes the chain that begins at `head` available; true when the device wants a doorbell.
    pub fn make_available(&mut self, memory: &GuestMemoryMmap, head: u16) -> bool {
        let entry = self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size);
        memory.write_obj(head, GuestAddress(entry)).unwrap();
        let old = self.avail;
        self.avail = self.avail.wrapping_add(1);
        memory
            .write_obj(self.avail, GuestAddress(self.avail_ring() + 2))
            .unwrap();
        let event = self.used_ring() + 4 + 8 * u64::from(self.size);
        let event: u16 = memory.read_obj(GuestAddress(event)).unwrap();
        self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
    }

    /// The next used buffer: its slot and length.
    pub fn take_used(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        let index: u16 = memory.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let entry = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        let head: u32 = memory.read_obj(GuestAddress(entry)).unwrap();
        let length: u32 = memory.read_obj(GuestAddress(entry + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        // Interrupt me at the next one.
        let used_event = self.avail_ring() + 4 + 2 * u64::from(self.size);
        memory
            .write_obj(self.used, GuestAddress(used_event))
            .unwrap();
        Some((u16::try_from(head).unwrap() / PER_SLOT, length))
    }
}
