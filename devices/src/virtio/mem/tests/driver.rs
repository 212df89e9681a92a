//! A guest with a virtio-mem driver, and a host that gives memory to it.
//!
//! The driver keeps to RING_EVENT_IDX in both directions: it rings the doorbell only when the device
//! asked for it and looks for answers only after an interrupt.

use crate::irq::testing::CountingLine;
use crate::virtio::device::{DeviceError, VirtioDevice};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::mem::{Mem, PlugMap, QUEUE_SIZE, Region, RegionMemory};
use crate::virtio::rings::Rings;
use crate::virtio::testing::{PER_SLOT, Ring};
use std::io;
use std::sync::{Arc, Mutex};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const MIB: u64 = 1 << 20;
/// Where the region starts.
pub const START: u64 = 4096 * MIB;
/// End of the guest's RAM.
pub const MEMORY: u64 = 8 * MIB;

pub const PLUG: u16 = 0;
pub const UNPLUG: u16 = 1;
pub const UNPLUG_ALL: u16 = 2;
pub const STATE: u16 = 3;

pub const ACK: u16 = 0;
pub const NACK: u16 = 1;
pub const BUSY: u16 = 2;
pub const ERROR: u16 = 3;

/// A host that notes what it gets back; clones are the same host.
#[derive(Debug, Clone, Default)]
pub struct Host(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    /// Offsets and lengths in MiB.
    discarded: Vec<(u64, u64)>,
    broken: bool,
}

impl Host {
    pub fn take_discarded(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap().discarded)
    }

    pub fn set_broken(&self, broken: bool) {
        self.0.lock().unwrap().broken = broken;
    }
}

impl RegionMemory for Host {
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let mut host = self.0.lock().unwrap();
        if host.broken {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        host.discarded.push((offset / MIB, length / MIB));
        Ok(())
    }
}

/// A buffer of a chain and its length.
#[derive(Debug, Clone, Copy)]
pub enum Piece {
    Out(u32),
    In(u32),
}

/// The usual layout of a request.
pub const USUAL: [Piece; 2] = [Piece::Out(24), Piece::In(10)];

/// Memory, queue, driver, and the device under test.
pub struct Driver {
    pub device: Mem,
    pub host: Host,
    pub memory: GuestMemoryMmap,
    pub ring: Ring,
    queues: Vec<Queue>,
    interrupt: VirtioInterrupt,
    line: CountingLine,
    interrupts_seen: usize,
}

impl Driver {
    /// A booted guest whose device has a region of so many MiB, and so many requested.
    pub fn new(region: u64, requested: u64) -> Self {
        let region = Region::new(GuestAddress(START), region * MIB).unwrap();
        let mut driver = Self::unbooted(PlugMap::new(region));
        driver.request(requested);
        driver.boot();
        driver
    }

    pub fn unbooted(map: PlugMap) -> Self {
        let host = Host::default();
        let length = usize::try_from(MEMORY).unwrap();
        let ring = Ring::new(0, QUEUE_SIZE);
        let line = CountingLine::default();
        Self {
            device: Mem::new(map, Box::new(host.clone())).unwrap(),
            host,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), length)]).unwrap(),
            queues: vec![ring.queue()],
            ring,
            interrupt: VirtioInterrupt::new(Box::new(line.clone())),
            line,
            interrupts_seen: 0,
        }
    }

    /// Loads the driver; again, after a reset.
    pub fn boot(&mut self) {
        self.device.reset();
        self.ring = Ring::new(0, QUEUE_SIZE);
        self.ring.clear(&self.memory);
        self.queues = vec![self.ring.queue()];
        self.on_device(|device, rings| device.activate(0, rings).unwrap());
    }

    /// Goes on as a clone, with the state of the device and nothing else.
    pub fn clone_device(&mut self) {
        let state = self.device.save();
        let map = PlugMap::try_from(&state).unwrap();
        self.device = Mem::new(map, Box::new(self.host.clone())).unwrap();
        assert_eq!(self.device.save(), state);
        self.on_device(|device, rings| device.activate(0, rings).unwrap());
    }

    /// The owner wants this many MiB plugged.
    pub fn request(&mut self, requested: u64) {
        self.device.set_requested_size(requested * MIB).unwrap();
    }

    pub fn on_device<R>(&mut self, f: impl FnOnce(&mut Mem, &mut Rings<'_>) -> R) -> R {
        let mut rings = Rings::new(&self.memory, &mut self.queues, &self.interrupt);
        f(&mut self.device, &mut rings)
    }

    pub fn doorbell(&mut self) -> Result<(), DeviceError> {
        self.on_device(|device, rings| device.queue_notified(0, rings))
    }

    pub fn backend_ready(&mut self) {
        self.on_device(|device, rings| device.backend_ready(rings).unwrap());
    }

    pub fn config_generation(&self) -> u32 {
        self.interrupt.config_generation()
    }

    /// Usable, plugged and requested size in MiB, as the driver reads them.
    pub fn sizes(&self) -> [u64; 3] {
        [32, 40, 48].map(|offset| self.config(offset) / MIB)
    }

    /// A 64-bit field of the configuration space.
    pub fn config(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A request for `blocks` blocks, `offset` MiB into the region: type and state of the answer.
    pub fn ask(&mut self, kind: u16, offset: u64, blocks: u16) -> (u16, u16) {
        self.ask_at(kind, START + offset * MIB, blocks)
    }

    pub fn ask_at(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        self.send(&bytes(kind, address, blocks), &USUAL).unwrap()
    }

    /// Sends bytes in a chain of contiguous buffers; the answer, `None` when nothing was written.
    pub fn send(&mut self, bytes: &[u8], layout: &[Piece]) -> Option<(u16, u16)> {
        let slot = self.ring.free.pop_front().unwrap();
        let start = self.ring.slot_address(slot).0;
        self.memory.write_slice(bytes, GuestAddress(start)).unwrap();
        let mut end = start;
        let mut answer = None;
        let descriptor = |piece: &Piece| {
            let (length, flag) = match *piece {
                Piece::Out(length) => (length, 0),
                Piece::In(length) => (length, 2),
            };
            if flag == 2 {
                answer.get_or_insert(GuestAddress(end));
            }
            end += u64::from(length);
            (end - u64::from(length), length, flag)
        };
        let mut chain: Vec<_> = layout.iter().map(descriptor).collect();
        let last = chain.len() - 1;
        for descriptor in &mut chain[..last] {
            descriptor.2 |= 1;
        }
        let written = self.send_descriptors(slot, &chain);
        let answer = self.memory.read_obj::<[u8; 10]>(answer?).unwrap();
        let field = |at: usize| u16::from_le_bytes([answer[at], answer[at + 1]]);
        match written {
            0 => None,
            10 => Some((field(0), field(8))),
            _ => panic!("{written} bytes written"),
        }
    }

    /// Makes a chain of raw descriptors available, rings when the device wants it, and waits for
    /// the device to return it; the bytes written.
    pub fn send_descriptors(&mut self, slot: u16, chain: &[(u64, u32, u16)]) -> u32 {
        let head = slot * PER_SLOT;
        for (number, (address, length, flags)) in (head..).zip(chain) {
            let address = GuestAddress(*address);
            self.ring
                .put_descriptor(&self.memory, number, address, *length, *flags);
        }
        if self.ring.make_available(&self.memory, head) {
            self.doorbell().unwrap();
        }
        let used = self.take_used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, slot);
        self.ring.free.push_back(slot);
        used[0].1
    }

    /// What the device has returned: slots and bytes written. Looks only after an interrupt.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let raised = self.line.raised();
        if std::mem::replace(&mut self.interrupts_seen, raised) == raised {
            return Vec::new();
        }
        assert_eq!(self.interrupt.status(), 1);
        self.interrupt.acknowledge(1);
        std::iter::from_fn(|| self.ring.take_used(&self.memory)).collect()
    }
}

/// A request.
pub fn bytes(kind: u16, address: u64, blocks: u16) -> Vec<u8> {
    let mut bytes = vec![0xee; 24];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&address.to_le_bytes());
    bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
    bytes
}
