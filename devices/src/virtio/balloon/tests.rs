//! What the balloon device does for drivers that follow the rules and for others.

use super::*;
use crate::irq::testing::CountingLine;
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::testing::Ring;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestMemoryMmap};

const MEMORY: usize = 80 << 20;
const STATS: u16 = 2;
const REPORTING: u16 = 3;

/// Notes what was given back, and refuses what is beyond the memory.
#[derive(Debug, Clone, Default)]
struct Host(Arc<Mutex<Vec<(u64, u64)>>>);

impl FreeMemory for Host {
    fn give_back(&self, start: GuestAddress, length: u64) -> io::Result<()> {
        if start.0 + length > MEMORY as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.lock().unwrap().push((start.0, length));
        Ok(())
    }
}

struct Driver {
    device: Balloon,
    memory: GuestMemoryMmap,
    rings: Vec<Ring>,
    queues: Vec<Queue>,
    interrupt: VirtioInterrupt,
    line: CountingLine,
    host: Host,
}

impl Driver {
    fn new(features: u64) -> Self {
        let rings: Vec<_> = (0..4).map(|queue| Ring::new(queue, QUEUE_SIZE)).collect();
        let line = CountingLine::default();
        let host = Host::default();
        let mut driver = Self {
            device: Balloon::new(Box::new(host.clone())).unwrap(),
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            queues: rings.iter().map(Ring::queue).collect(),
            rings,
            interrupt: VirtioInterrupt::new(Box::new(line.clone())),
            line,
            host,
        };
        driver
            .on_device(|device, rings| device.activate(features, rings))
            .unwrap();
        driver
    }

    fn on_device<R>(&mut self, f: impl FnOnce(&mut Balloon, &mut Rings<'_>) -> R) -> R {
        let mut rings = Rings::new(&self.memory, &mut self.queues, &self.interrupt);
        f(&mut self.device, &mut rings)
    }

    fn doorbell(&mut self, queue: u16) -> Result<(), DeviceError> {
        self.on_device(|device, rings| device.queue_notified(queue, rings))
    }

    fn report(&mut self, slot: u16, start: u64, length: u32) {
        let ring = &mut self.rings[usize::from(REPORTING)];
        ring.put_descriptor(&self.memory, slot * 4, GuestAddress(start), length, 2);
        ring.make_available(&self.memory, slot * 4);
    }

    fn send_stats(&mut self, slot: u16, tag: u16, value: u64) {
        let ring = &mut self.rings[usize::from(STATS)];
        let record = [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        self.memory
            .write_slice(&record, ring.slot_address(slot))
            .unwrap();
        let wants_doorbell = ring.add(&self.memory, slot, &[10], false);
        assert!(wants_doorbell, "nobody would look at it");
    }

    fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        self.rings[usize::from(queue)].take_used(&self.memory)
    }

    fn given_back(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut *self.host.0.lock().unwrap())
    }
}

#[test]
fn reported_pages_go_back() {
    let mut driver = Driver::new(STATS_FEATURE | REPORTING_FEATURE);
    driver.report(0, 0x40_0000, 2 << 20);
    driver.report(1, 0x80_0001, 8192);
    driver.report(2, 0x90_0000, 4095);
    driver.doorbell(REPORTING).unwrap();
    let expected = [(0x40_0000, 2 << 20), (0x80_1000, 4096)];
    assert_eq!(driver.given_back(), expected);
    for _ in 0..3 {
        assert!(driver.used(REPORTING).is_some());
    }
    assert_eq!(driver.line.raised(), 1);
}

#[test]
fn reports_use_the_third_queue_without_statistics() {
    let mut driver = Driver::new(REPORTING_FEATURE);
    driver.report(0, 0x40_0000, 4096);
    driver.doorbell(REPORTING).unwrap();
    assert_eq!(driver.given_back(), []);
    let ring = &mut driver.rings[usize::from(STATS)];
    ring.put_descriptor(&driver.memory, 0, GuestAddress(0x40_0000), 4096, 2);
    ring.make_available(&driver.memory, 0);
    driver.doorbell(STATS).unwrap();
    assert_eq!(driver.given_back(), [(0x40_0000, 4096)]);
}

#[test]
fn what_is_no_memory_is_returned_and_harms_nothing() {
    let mut driver = Driver::new(STATS_FEATURE | REPORTING_FEATURE);
    driver.report(0, u64::MAX - 4096, 8192);
    driver.report(1, MEMORY as u64, 4096);
    driver.report(2, 0x40_0000, 4096);
    driver.doorbell(REPORTING).unwrap();
    assert_eq!(driver.given_back(), [(0x40_0000, 4096)]);
    assert_eq!(driver.used(REPORTING), Some((0, 0)));
}

#[test]
fn a_turn_is_bounded_and_the_rest_comes_later() {
    let mut driver = Driver::new(STATS_FEATURE | REPORTING_FEATURE);
    for slot in 0..6 {
        driver.report(slot, 0, 64 << 20);
    }
    driver.doorbell(REPORTING).unwrap();
    assert_eq!(driver.given_back().len(), 4);
    driver
        .on_device(|device, rings| device.backend_ready(rings))
        .unwrap();
    assert_eq!(driver.given_back().len(), 2);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut driver = Driver::new(STATS_FEATURE | REPORTING_FEATURE);
    let stats = driver.device.stats();
    // The driver sends some when it starts, which stay where they are.
    driver.send_stats(0, 4, 1000);
    driver.doorbell(STATS).unwrap();
    assert_eq!((stats.count(), driver.used(STATS)), (0, None));

    driver.on_device(Balloon::ask_for_stats).unwrap();
    assert_eq!(driver.used(STATS), Some((0, 0)));
    driver.send_stats(1, 4, 2000);
    driver.doorbell(STATS).unwrap();
    let found = stats.wait_after(0, Duration::ZERO).unwrap();
    assert_eq!(found.free_bytes, Some(2000));
    assert_eq!(driver.used(STATS), None);

    // Nobody asked for these.
    driver.doorbell(STATS).unwrap();
    assert_eq!(stats.count(), 1);
}

#[test]
fn pages_of_the_balloon_stay_the_guests() {
    let mut driver = Driver::new(STATS_FEATURE | REPORTING_FEATURE);
    for queue in [INFLATE_QUEUE, DEFLATE_QUEUE] {
        driver.rings[usize::from(queue)].add(&driver.memory, 0, &[64], false);
        driver.doorbell(queue).unwrap();
        assert_eq!(driver.used(queue), Some((0, 0)));
    }
    assert_eq!(driver.given_back(), []);
}

#[test]
fn statistics_outside_of_memory_break_the_device_until_its_reset() {
    let mut driver = Driver::new(STATS_FEATURE | REPORTING_FEATURE);
    let ring = &mut driver.rings[usize::from(STATS)];
    ring.put_descriptor(&driver.memory, 0, GuestAddress(MEMORY as u64 - 8), 64, 0);
    ring.make_available(&driver.memory, 0);
    assert!(driver.doorbell(STATS).is_err());
    driver.report(0, 0x40_0000, 4096);
    driver.doorbell(REPORTING).unwrap();
    assert_eq!(driver.given_back(), []);

    driver.device.reset();
    driver
        .on_device(|device, rings| device.activate(REPORTING_FEATURE | STATS_FEATURE, rings))
        .unwrap();
    driver.doorbell(REPORTING).unwrap();
    assert_eq!(driver.given_back(), [(0x40_0000, 4096)]);
}
