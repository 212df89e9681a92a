//! What the entropy device gives to drivers that follow the rules and to others.

use super::*;
use crate::irq::testing::CountingLine;
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::testing::{PER_SLOT, Ring};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 32 << 20;

struct Driver {
    device: Rng,
    memory: GuestMemoryMmap,
    ring: Ring,
    queues: Vec<Queue>,
    interrupt: VirtioInterrupt,
    line: CountingLine,
}

impl Driver {
    fn new() -> Self {
        let ring = Ring::new(REQUEST_QUEUE, QUEUE_SIZE);
        let line = CountingLine::default();
        let mut driver = Self {
            device: Rng::new().unwrap(),
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            queues: vec![ring.queue()],
            ring,
            interrupt: VirtioInterrupt::new(Box::new(line.clone())),
            line,
        };
        driver
            .on_device(|device, rings| device.activate(0, rings))
            .unwrap();
        driver
    }

    fn on_device<R>(&mut self, f: impl FnOnce(&mut Rng, &mut Rings<'_>) -> R) -> R {
        let mut rings = Rings::new(&self.memory, &mut self.queues, &self.interrupt);
        f(&mut self.device, &mut rings)
    }

    fn doorbell(&mut self) -> Result<(), DeviceError> {
        self.on_device(|device, rings| device.queue_notified(REQUEST_QUEUE, rings))
    }

    fn bytes(&self, slot: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let address = self.ring.slot_address(slot);
        self.memory.read_slice(&mut bytes, address).unwrap();
        bytes
    }
}

#[test]
fn buffers_are_filled_with_different_bytes() {
    let mut driver = Driver::new();
    for slot in 0..2 {
        assert!(driver.ring.add(&driver.memory, slot, &[32, 32], true) || slot > 0);
    }
    driver.doorbell().unwrap();
    assert_eq!(driver.ring.take_used(&driver.memory), Some((0, 64)));
    assert_eq!(driver.ring.take_used(&driver.memory), Some((1, 64)));
    assert_ne!(driver.bytes(0, 32), driver.bytes(1, 32));
    assert_ne!(driver.bytes(0, 64)[32..], [0; 32]);
    assert_eq!(driver.line.raised(), 1);
}

#[test]
fn a_turn_is_bounded_and_the_rest_comes_later() {
    let mut driver = Driver::new();
    for slot in 0..8 {
        driver.ring.add(&driver.memory, slot, &[0x1_0000], true);
    }
    driver.doorbell().unwrap();
    let mut answered = 0;
    for turns in 1..=8 {
        while let Some((_, length)) = driver.ring.take_used(&driver.memory) {
            assert_eq!(length, 4096);
            answered += 1;
        }
        assert_eq!(answered, (4 * turns).min(8));
        driver
            .on_device(|device, rings| device.backend_ready(rings))
            .unwrap();
    }
}

#[test]
fn a_buffer_without_room_gets_nothing() {
    let mut driver = Driver::new();
    driver.ring.add(&driver.memory, 0, &[64], false);
    driver.doorbell().unwrap();
    assert_eq!(driver.ring.take_used(&driver.memory), Some((0, 0)));
    assert_eq!(driver.bytes(0, 64), [0; 64]);
}

#[test]
fn a_buffer_outside_of_memory_breaks_the_device_until_its_reset() {
    let mut driver = Driver::new();
    let outside = GuestAddress(MEMORY as u64 - 8);
    driver
        .ring
        .put_descriptor(&driver.memory, 0, outside, 64, 2);
    driver.ring.make_available(&driver.memory, 0);
    assert!(driver.doorbell().is_err());
    driver.ring.add(&driver.memory, 1, &[64], true);
    driver.doorbell().unwrap();
    assert_eq!(driver.ring.take_used(&driver.memory), None);

    driver.device.reset();
    driver.ring = Ring::new(REQUEST_QUEUE, QUEUE_SIZE);
    driver.ring.clear(&driver.memory);
    driver.queues = vec![driver.ring.queue()];
    driver
        .on_device(|device, rings| device.activate(0, rings))
        .unwrap();
    driver.ring.add(&driver.memory, 1, &[64], true);
    driver.doorbell().unwrap();
    assert_eq!(driver.ring.take_used(&driver.memory), Some((1, 64)));
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut driver = Driver::new();
    let buffer = driver.ring.slot_address(0);
    // The last descriptor of the table says that it goes on with itself.
    let last = QUEUE_SIZE - PER_SLOT;
    for number in 0..QUEUE_SIZE {
        driver
            .ring
            .put_descriptor(&driver.memory, number, buffer, 16, 3);
    }
    let next = driver.ring.descriptors().0 + 16 * u64::from(last) + 14;
    driver.memory.write_obj(last, GuestAddress(next)).unwrap();
    driver.ring.make_available(&driver.memory, last);
    // An error or an answer, but no endless loop.
    let _broken = driver.doorbell();
    let used = driver.ring.take_used(&driver.memory);
    assert!(used.is_none_or(|(_, length)| length <= 4096));
}
