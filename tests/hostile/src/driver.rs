//! The guest's drivers: they keep to the rules until their input makes them break one.

use crate::machine::{MEM_WINDOW, Machine, RAM_END, REGION_START, VSOCK_WINDOW, lock, must, view};
use arbitrary::Arbitrary;
use devices::virtio::testing::{PER_SLOT, Ring};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Sizes of the queues: three of the socket device, one of the memory device.
const QUEUES: [(u64, u32, u16); 4] = [
    (VSOCK_WINDOW, 0, 256),
    (VSOCK_WINDOW, 1, 256),
    (VSOCK_WINDOW, 2, 16),
    (MEM_WINDOW, 0, 128),
];
/// Queue of packets to the guest.
pub const RX: u8 = 0;
/// Queue of packets from the guest.
pub const TX: u8 = 1;
/// Queue of the socket device's events.
pub const EVENT: u8 = 2;
/// Queue of requests to the memory device.
pub const REQUESTS: u8 = 3;

/// One of the two devices.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub enum Device {
    /// The socket device.
    Vsock,
    /// The memory device.
    Mem,
}

impl Device {
    /// Its registers.
    pub fn window(self) -> u64 {
        match self {
            Self::Vsock => VSOCK_WINDOW,
            Self::Mem => MEM_WINDOW,
        }
    }

    fn queues(self) -> std::ops::Range<usize> {
        match self {
            Self::Vsock => 0..3,
            Self::Mem => 3..4,
        }
    }
}

/// An address near one that matters.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Place {
    near: u8,
    offset: i32,
}

impl Place {
    /// The guest physical address, which may be anything.
    pub fn address(self) -> GuestAddress {
        let queue = u64::from(self.near >> 3) % 4;
        let (base, span) = match self.near % 8 {
            0 | 1 => (0x1_0000 * (queue + 1), 0x1_0000),
            2 | 3 => (0x10_0000 + queue * 0x100_0000, 0x1_0000),
            4 => (RAM_END, 0x400),
            5 => (REGION_START, 0x400),
            6 => (u64::MAX, 0x400),
            _ => (0, i64::MAX),
        };
        let offset = i64::from(self.offset) % span;
        GuestAddress(base.wrapping_add_signed(offset))
    }
}

/// A descriptor, whose fields may be anything.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Raw {
    number: u16,
    at: Place,
    length: u32,
    flags: u16,
    next: u16,
}

/// A buffer of a chain.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct Piece {
    /// Bytes.
    pub length: u16,
    /// The device writes to it.
    pub writable: bool,
}

/// A request to the memory device.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub struct MemRequest {
    /// The type.
    pub kind: u8,
    /// First block.
    pub block: u16,
    /// Bytes by which the address is wrong.
    pub skew: u8,
    /// Blocks.
    pub count: u16,
}

/// The drivers of both devices.
#[derive(Debug)]
pub struct Driver {
    rings: Vec<Ring>,
    next_slot: [u16; 4],
}

impl Driver {
    /// Drivers that were not loaded yet.
    pub fn unloaded() -> Self {
        let rings = (0..)
            .zip(QUEUES)
            .map(|(at, (_, _, size))| Ring::new(at, size));
        Self {
            rings: rings.collect(),
            next_slot: [0; 4],
        }
    }

    /// Resets a device and sets it up as the specification wants it.
    pub fn start(&mut self, machine: &Machine, device: Device) {
        let window = device.window();
        let write = |offset, value: u32| write_register(machine, window + offset, value);
        for status in [0, 1, 3] {
            write(0x70, status);
        }
        // VERSION_1 and RING_EVENT_IDX.
        for (select, features) in [(0, 1 << 29), (1, 1)] {
            write(0x24, select);
            write(0x20, features);
        }
        write(0x70, 0xb);
        for queue in device.queues() {
            let (_, index, size) = QUEUES[queue];
            self.rings[queue] = Ring::new(must(u16::try_from(queue)), size);
            self.next_slot[queue] = 0;
            let ring = &self.rings[queue];
            ring.clear(&view(&machine.memory));
            write(0x30, index);
            write(0x38, size.into());
            for (register, address) in [
                (0x80, ring.descriptors().0),
                (0x90, ring.avail_ring()),
                (0xa0, ring.used_ring()),
            ] {
                write(register, must(u32::try_from(address)));
                write(register + 4, 0);
            }
            write(0x44, 1);
        }
        write(0x70, 0xf);
    }

    /// Rings a doorbell by the register, as a guest without ioeventfd does.
    pub fn notify(&self, machine: &Machine, queue: u8) {
        let (window, index, _) = QUEUES[usize::from(queue) % QUEUES.len()];
        write_register(machine, window + 0x50, index);
    }

    /// Rings it through the event loop.
    pub fn doorbell(&self, machine: &Machine, queue: u8) {
        let (window, index, _) = QUEUES[usize::from(queue) % QUEUES.len()];
        let index = must(usize::try_from(index));
        if window == VSOCK_WINDOW {
            must(lock(&machine.vsock).doorbells()[index].write(1));
        } else {
            must(lock(&machine.mem).doorbells()[index].write(1));
        }
    }

    /// Makes a chain of buffers available that hold what they held.
    pub fn chain(&mut self, machine: &Machine, queue: u8, pieces: &[Piece]) {
        let slot = self.slot(queue);
        self.chain_in(machine, queue, slot, pieces);
    }

    /// Writes bytes and makes them available in a chain of buffers.
    pub fn send(&mut self, machine: &Machine, queue: u8, bytes: &[u8], pieces: &[Piece]) {
        let slot = self.slot(queue);
        let start = self.ring(queue).slot_address(slot);
        must(view(&machine.memory).write_slice(bytes, start));
        self.chain_in(machine, queue, slot, pieces);
    }

    /// Asks the memory device for something.
    pub fn ask(&mut self, machine: &Machine, request: MemRequest) {
        let address = REGION_START
            .wrapping_add(u64::from(request.block) << 21)
            .wrapping_add(u64::from(request.skew));
        let mut bytes = vec![request.kind, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(address.to_le_bytes());
        bytes.extend(request.count.to_le_bytes());
        bytes.extend([0; 6]);
        self.send(machine, REQUESTS, &bytes, &[out(24), into(10)]);
    }

    /// Writes a descriptor of a queue.
    pub fn write_descriptor(&self, machine: &Machine, queue: u8, raw: Raw) {
        let ring = self.ring(queue);
        let (_, _, size) = QUEUES[usize::from(queue) % QUEUES.len()];
        let number = raw.number % size;
        let memory = view(&machine.memory);
        ring.put_descriptor(&memory, number, raw.at.address(), raw.length, raw.flags);
        let next = ring.descriptors().0 + 16 * u64::from(number) + 14;
        must(memory.write_obj(raw.next, GuestAddress(next)));
    }

    /// Makes a chain available that begins with any number.
    pub fn make_available(&mut self, machine: &Machine, queue: u8, head: u16) {
        let index = usize::from(queue) % QUEUES.len();
        self.rings[index].make_available(&view(&machine.memory), head);
    }

    /// Says that chains up to this one are available.
    pub fn claim_available(&self, machine: &Machine, queue: u8, index: u16) {
        let at = GuestAddress(self.ring(queue).avail_ring() + 2);
        must(view(&machine.memory).write_obj(index, at));
    }

    /// How many buffers the device has returned, as far as it tells.
    pub fn used(&self, machine: &Machine, queue: u8) -> u16 {
        let at = GuestAddress(self.ring(queue).used_ring() + 2);
        must(view(&machine.memory).read_obj(at))
    }

    fn chain_in(&mut self, machine: &Machine, queue: u8, slot: u16, pieces: &[Piece]) {
        let index = usize::from(queue) % QUEUES.len();
        put_chain(&mut self.rings[index], &view(&machine.memory), slot, pieces);
    }

    fn slot(&mut self, queue: u8) -> u16 {
        let index = usize::from(queue) % QUEUES.len();
        let slots = QUEUES[index].2 / PER_SLOT;
        let slot = self.next_slot[index];
        self.next_slot[index] = (slot + 1) % slots;
        slot
    }

    fn ring(&self, queue: u8) -> &Ring {
        &self.rings[usize::from(queue) % QUEUES.len()]
    }
}

/// Makes a chain of the slot's buffers available.
pub fn put_chain(ring: &mut Ring, memory: &GuestMemoryMmap, slot: u16, pieces: &[Piece]) {
    let pieces = &pieces[..pieces.len().min(PER_SLOT.into())];
    let head = slot * PER_SLOT;
    let mut address = ring.slot_address(slot);
    for (number, piece) in (1..).zip(pieces) {
        let more = u16::from(usize::from(number) < pieces.len());
        let flags = more | if piece.writable { 2 } else { 0 };
        let length = u32::from(piece.length);
        ring.put_descriptor(memory, head + number - 1, address, length, flags);
        address = GuestAddress(address.0 + u64::from(piece.length));
    }
    ring.make_available(memory, head);
}

/// A buffer that the device reads.
pub fn out(length: u16) -> Piece {
    Piece {
        length,
        writable: false,
    }
}

/// A buffer that the device writes.
pub fn into(length: u16) -> Piece {
    Piece {
        length,
        writable: true,
    }
}

/// Writes a register of 32 bits.
pub fn write_register(machine: &Machine, address: u64, value: u32) {
    machine.mmio.write(address, &value.to_le_bytes());
}

/// Reads a register of 32 bits.
pub fn read_register(machine: &Machine, address: u64) -> u32 {
    let mut bytes = [0; 4];
    machine.mmio.read(address, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// After all that was done to them, both devices work for a driver that resets them.
pub fn expect_alive(machine: &mut Machine) {
    let mut driver = Driver::unloaded();
    for device in [Device::Vsock, Device::Mem] {
        driver.start(machine, device);
        assert_eq!(
            read_register(machine, device.window() + 0x70),
            0xf,
            "{device:?}"
        );
    }
    driver.ask(machine, STATE_OF_FIRST_BLOCK);
    driver.notify(machine, REQUESTS);
    assert_eq!(driver.used(machine, REQUESTS), 1, "no answer to a request");

    for _ in 0..8 {
        driver.chain(machine, RX, &[into(4096)]);
    }
    let handle = lock(&machine.vsock).device().handle();
    let stream = must(handle.connect(1024));
    machine.run_event_loop();
    driver.notify(machine, RX);
    assert_ne!(driver.used(machine, RX), 0, "no request for a connection");
    drop(stream);
}

const STATE_OF_FIRST_BLOCK: MemRequest = MemRequest {
    kind: 3,
    block: 0,
    skew: 0,
    count: 1,
};
