//! A guest with a driver for a disk.

use crate::irq::testing::CountingLine;
use crate::virtio::blk::{Blk, Image, QUEUE_SIZE, QUEUES};
use crate::virtio::device::{DeviceError, VirtioDevice};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::rings::Rings;
use crate::virtio::testing::{PER_SLOT, Ring};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::time::Duration;
use virtio_queue::Queue;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

pub const MEMORY: usize = 48 << 20;
pub const SECTOR: usize = 512;

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IO_ERROR: u8 = 1;
pub const UNSUPPORTED: u8 = 2;

pub const NEXT: u16 = 1;
pub const DEVICE_WRITES: u16 = 2;

const DEADLINE: Duration = Duration::from_secs(20);

/// Memory, queues, driver, and the device under test.
pub struct Driver {
    pub device: Blk,
    pub memory: GuestMemoryMmap,
    pub rings: Vec<Ring>,
    queues: Vec<Queue>,
    interrupt: VirtioInterrupt,
}

impl Driver {
    pub fn new(image: Image, read_only: bool) -> Self {
        let ring = |index| Ring::new(index, QUEUE_SIZE);
        let rings: Vec<_> = (0..QUEUES).map(ring).collect();
        let mut driver = Self {
            device: Blk::new(image, "disk-0", read_only).unwrap(),
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            queues: Vec::new(),
            rings,
            interrupt: VirtioInterrupt::new(Box::new(CountingLine::default())),
        };
        driver.boot();
        driver
    }

    /// Loads the driver; again, after a reset.
    pub fn boot(&mut self) {
        self.device.reset();
        self.rings = (0..QUEUES)
            .map(|index| Ring::new(index, QUEUE_SIZE))
            .collect();
        self.rings.iter().for_each(|ring| ring.clear(&self.memory));
        self.queues = self.rings.iter().map(Ring::queue).collect();
        self.on_device(|device, rings| device.activate(0, rings))
            .unwrap();
    }

    pub fn on_device<R>(&mut self, f: impl FnOnce(&mut Blk, &mut Rings<'_>) -> R) -> R {
        let mut rings = Rings::new(&self.memory, &mut self.queues, &self.interrupt);
        f(&mut self.device, &mut rings)
    }

    pub fn doorbell(&mut self, queue: u16) -> Result<(), DeviceError> {
        self.on_device(|device, rings| device.queue_notified(queue, rings))
    }

    pub fn backend_ready(&mut self) -> Result<(), DeviceError> {
        self.on_device(|device, rings| device.backend_ready(rings))
    }

    pub fn settle(&mut self) {
        self.on_device(|device, rings| device.settle(rings, DEADLINE))
            .unwrap();
        self.device.check_settled().unwrap();
    }

    /// Makes a request available and rings; its slot.
    pub fn send(&mut self, queue: u16, kind: u32, sector: u64, data: &[u8], room: usize) -> u16 {
        let ring = &mut self.rings[usize::from(queue)];
        let slot = ring.free.pop_front().unwrap();
        let start = ring.slot_address(slot);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.memory.write_slice(&header, start).unwrap();
        let data_at = start.unchecked_add(512);
        self.memory.write_slice(data, data_at).unwrap();
        let room_at = data_at.unchecked_add(data.len() as u64);
        let status_at = start.unchecked_add(16);
        self.memory.write_obj(0xff_u8, status_at).unwrap();
        let mut chain = vec![(start, 16, 0)];
        if !data.is_empty() {
            chain.push((data_at, data.len(), 0));
        }
        if room > 0 {
            chain.push((room_at, room, DEVICE_WRITES));
        }
        chain.push((status_at, 1, DEVICE_WRITES));
        self.send_chain(queue, slot, &chain);
        slot
    }

    pub fn send_chain(&mut self, queue: u16, slot: u16, chain: &[(GuestAddress, usize, u16)]) {
        let ring = &mut self.rings[usize::from(queue)];
        let head = slot * PER_SLOT;
        let last = chain.len() - 1;
        for (number, (address, length, flags)) in chain.iter().enumerate() {
            let more = if number < last { NEXT } else { 0 };
            let number = head + u16::try_from(number).unwrap();
            let length = u32::try_from(*length).unwrap();
            ring.put_descriptor(&self.memory, number, *address, length, flags | more);
        }
        if ring.make_available(&self.memory, head) {
            self.doorbell(queue).unwrap();
        }
    }

    /// Waits until the chain in a slot comes back: its status, and the bytes written.
    pub fn finish(&mut self, queue: u16, slot: u16) -> (u8, u32) {
        loop {
            self.settle();
            self.backend_ready().unwrap();
            while let Some((used, written)) = self.rings[usize::from(queue)].take_used(&self.memory)
            {
                self.rings[usize::from(queue)].free.push_back(used);
                if used == slot {
                    return (self.status(queue, slot), written);
                }
            }
        }
    }

    pub fn status(&self, queue: u16, slot: u16) -> u8 {
        let at = self.rings[usize::from(queue)]
            .slot_address(slot)
            .unchecked_add(16);
        self.memory.read_obj(at).unwrap()
    }

    pub fn ask(&mut self, kind: u32, sector: u64, data: &[u8], room: usize) -> (u8, u32) {
        let slot = self.send(0, kind, sector, data, room);
        self.finish(0, slot)
    }

    pub fn read(&mut self, sector: u64, length: usize) -> Vec<u8> {
        let slot = self.send(1, READ, sector, &[], length);
        let (status, written) = self.finish(1, slot);
        assert_eq!((status, written as usize), (OK, length + 1));
        self.data(1, slot, length)
    }

    pub fn data(&self, queue: u16, slot: u16, length: usize) -> Vec<u8> {
        let at = self.rings[usize::from(queue)]
            .slot_address(slot)
            .unchecked_add(512);
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, at).unwrap();
        data
    }
}

/// A file with this content, which only the test has.
pub fn file(content: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    Arc::new(file)
}

/// An empty file as long as a disk, for an overlay.
pub fn hollow(length: usize) -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(length as u64).unwrap();
    Arc::new(file)
}

pub fn content(mut file: &File) -> Vec<u8> {
    let mut content = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut content).unwrap();
    content
}

/// A segment of a discard or write-zeroes request.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Bytes that tell where they are.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at / SECTOR * 7 + at).to_le_bytes()[0])
        .collect()
}
