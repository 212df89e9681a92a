//! What the device answers to a driver that follows the rules, or nearly.

use super::driver::*;
use crate::virtio::device::VirtioDevice;
use crate::virtio::mem::{PlugMap, PluggedRange, QUEUE_SIZE, Region};
use crate::virtio::mmio::MmioTransport;
use std::os::fd::AsRawFd;
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic};

const PLUGGED: u16 = 0;
const UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

#[test]
fn guest_plugs_what_is_requested_and_no_more() {
    let mut driver = Driver::new(512, 100);
    assert_eq!(driver.ask(PLUG, 8, 49), (ACK, 0));
    assert_eq!(driver.ask(PLUG, 0, 2), (NACK, 0));
    assert_eq!(driver.ask(PLUG, 126, 1), (ACK, 0));
    assert_eq!(driver.ask(PLUG, 124, 1), (NACK, 0));
    assert_eq!(driver.sizes(), [128, 100, 100]);
    let range = |offset, length| PluggedRange {
        offset: offset * MIB,
        length: length * MIB,
    };
    let plugged: Vec<_> = driver.device.map().plugged_ranges().collect();
    assert_eq!(plugged, [range(8, 98), range(126, 2)]);
    assert_eq!(driver.host.take_discarded(), []);
}

#[test]
fn blocks_that_are_not_usable_are_an_error() {
    let mut driver = Driver::new(512, 100);
    for kind in [PLUG, UNPLUG, STATE] {
        for (address, blocks) in [
            (START, 0),
            (START, 65),
            (START, u16::MAX),
            (START + 1, 1),
            (START + MIB, 1),
            (START - 2 * MIB, 1),
            (START - 2 * MIB, 2),
            (START + 126 * MIB, 2),
            (START + 128 * MIB, 1),
            (START + 512 * MIB, 1),
            (0, 1),
            (u64::MAX, 1),
            (u64::MAX - 2 * MIB + 1, u16::MAX),
        ] {
            assert_eq!(driver.ask_at(kind, address, blocks), (ERROR, 0));
        }
    }
    assert_eq!(driver.sizes(), [128, 0, 100]);
}

#[test]
fn plugged_blocks_cannot_be_plugged_again() {
    let mut driver = Driver::new(512, 100);
    assert_eq!(driver.ask(PLUG, 4, 2), (ACK, 0));
    for (offset, blocks) in [(4, 2), (6, 1), (2, 2), (0, 50)] {
        assert_eq!(driver.ask(PLUG, offset, blocks), (ERROR, 0));
    }
    assert_eq!(driver.sizes(), [128, 4, 100]);
}

#[test]
fn unplugged_memory_goes_back_to_the_host() {
    let mut driver = Driver::new(512, 100);
    assert_eq!(driver.ask(PLUG, 4, 10), (ACK, 0));
    for (offset, blocks) in [(0, 1), (2, 2), (4, 11)] {
        assert_eq!(driver.ask(UNPLUG, offset, blocks), (ERROR, 0));
    }
    assert_eq!(driver.host.take_discarded(), []);
    assert_eq!(driver.ask(UNPLUG, 8, 3), (ACK, 0));
    assert_eq!(driver.host.take_discarded(), [(8, 6)]);
    assert_eq!(driver.sizes(), [128, 14, 100]);
    assert_eq!(driver.ask(PLUG, 8, 3), (ACK, 0));
}

#[test]
fn memory_that_the_host_does_not_take_stays_plugged() {
    let mut driver = Driver::new(512, 100);
    assert_eq!(driver.ask(PLUG, 0, 10), (ACK, 0));
    driver.request(200);
    driver.request(0);
    driver.host.set_broken(true);
    assert_eq!(driver.ask(UNPLUG, 0, 1), (BUSY, 0));
    assert_eq!(driver.ask(UNPLUG_ALL, 0, 0), (BUSY, 0));
    assert_eq!(driver.sizes(), [256, 20, 0]);
    driver.host.set_broken(false);
    assert_eq!(driver.ask(UNPLUG, 0, 1), (ACK, 0));
    assert_eq!(driver.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!(driver.sizes(), [0, 0, 0]);
    assert_eq!(driver.host.take_discarded(), [(0, 2), (0, 256)]);
}

#[test]
fn unplugging_all_leaves_usable_what_is_requested() {
    let mut driver = Driver::new(512, 512);
    assert_eq!(driver.ask(PLUG, 400, 2), (ACK, 0));
    driver.request(130);
    assert_eq!(driver.sizes(), [512, 4, 130]);
    assert_eq!(driver.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!(driver.sizes(), [256, 0, 130]);
    assert_eq!(driver.ask(PLUG, 256, 1), (ERROR, 0));
    assert_eq!(driver.ask(PLUG, 254, 1), (ACK, 0));
}

#[test]
fn state_of_blocks_is_told() {
    let mut driver = Driver::new(512, 512);
    assert_eq!(driver.ask(PLUG, 128, 64), (ACK, 0));
    assert_eq!(driver.ask(STATE, 128, 64), (ACK, PLUGGED));
    assert_eq!(driver.ask(STATE, 0, 64), (ACK, UNPLUGGED));
    assert_eq!(driver.ask(STATE, 126, 2), (ACK, MIXED));
    assert_eq!(driver.ask(STATE, 0, 256), (ACK, MIXED));
}

#[test]
fn reset_leaves_memory_alone() {
    let mut driver = Driver::new(512, 100);
    assert_eq!(driver.ask(PLUG, 0, 10), (ACK, 0));
    let before = driver.device.save();
    driver.boot();
    assert_eq!(driver.device.save(), before);
    assert_eq!(driver.host.take_discarded(), []);
    assert_eq!(driver.ask(UNPLUG, 0, 10), (ACK, 0));
}

#[test]
fn clone_goes_on_with_the_plugged_memory() {
    let mut driver = Driver::new(512, 100);
    assert_eq!(driver.ask(PLUG, 0, 10), (ACK, 0));
    driver.clone_device();
    assert_eq!(driver.device.plugged().bytes(), 20 * MIB);
    assert_eq!(driver.sizes(), [128, 20, 100]);
    assert_eq!(driver.ask(UNPLUG, 18, 1), (ACK, 0));
    assert_eq!(driver.ask(STATE, 0, 9), (ACK, PLUGGED));
}

#[test]
fn owner_hears_what_is_plugged() {
    let mut driver = Driver::new(512, 100);
    let plugged = driver.device.plugged();
    assert_eq!(plugged.bytes(), 0);
    let waiter = plugged.clone();
    let waiter = std::thread::spawn(move || waiter.wait_for(100 * MIB, Duration::from_secs(60)));
    assert_eq!(driver.ask(PLUG, 0, 25), (ACK, 0));
    assert_eq!(driver.ask(PLUG, 50, 25), (ACK, 0));
    assert!(waiter.join().unwrap());
    assert_eq!(driver.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!(plugged.bytes(), 0);
}

#[test]
fn full_queue_is_answered_and_the_next_doorbell_comes() {
    let mut driver = Driver::new(512, 512);
    let buffer = GuestAddress(MEMORY - 64);
    driver
        .memory
        .write_slice(&bytes(STATE, START, 1), buffer)
        .unwrap();
    let ring = &mut driver.ring;
    ring.put_descriptor(&driver.memory, 0, buffer, 24, 1);
    ring.put_descriptor(&driver.memory, 1, GuestAddress(MEMORY - 32), 10, 2);
    for _ in 0..QUEUE_SIZE {
        ring.make_available(&driver.memory, 0);
    }
    driver.doorbell().unwrap();
    assert_eq!(driver.take_used(), vec![(0, 10); QUEUE_SIZE.into()]);
    assert!(wants_another_turn(&driver));
    driver.backend_ready();
    assert!(!wants_another_turn(&driver));
    assert_eq!(driver.ask(STATE, 0, 1), (ACK, UNPLUGGED));
}

#[test]
fn back_end_event_before_the_driver_is_there_does_nothing() {
    let region = Region::new(GuestAddress(START), 512 * MIB).unwrap();
    let mut driver = Driver::unbooted(PlugMap::new(region));
    driver.device.again.write(1).unwrap();
    driver.backend_ready();
    assert!(!wants_another_turn(&driver));
}

#[test]
fn transport_tells_the_driver_a_new_size() {
    let driver = Driver::new(512, 0);
    let memory = GuestMemoryAtomic::new(driver.memory);
    let line = Box::new(crate::irq::testing::CountingLine::default());
    let mut transport = MmioTransport::new(driver.device, memory, line).unwrap();
    transport
        .change_config(|device| device.set_requested_size(64 * MIB))
        .unwrap();
    assert_eq!(transport.device().map().requested_size(), 64 * MIB);
    assert_eq!(transport.save().config_generation, 1);
    transport
        .change_config(|device| device.set_requested_size(1))
        .unwrap_err();
    assert_eq!(transport.save().config_generation, 1);
}

fn wants_another_turn(driver: &Driver) -> bool {
    let fd = driver.device.backend_fd().unwrap();
    assert_eq!(fd, driver.device.again.as_raw_fd());
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1
}
