//! Chains that are no requests: the driver gets an error or nothing, and the device works on.

use super::driver::*;
use crate::virtio::device::DeviceError;
use crate::virtio::mem::QUEUE_SIZE;
use crate::virtio::testing::PER_SLOT;
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A request that would be carried out.
fn good() -> Vec<u8> {
    bytes(PLUG, START, 1)
}

fn assert_alive_and_unchanged(driver: &mut Driver) {
    assert_eq!(driver.ask(STATE, 0, 1), (ACK, 1));
    assert_eq!(driver.sizes(), [128, 0, 128]);
}

#[test]
fn request_may_be_split_anywhere_and_be_followed_by_more() {
    use Piece::{In, Out};
    for layout in [
        [Out(1), Out(23), In(9), In(1)],
        [Out(17), Out(0), Out(7), In(10)],
        [Out(24), In(1), In(0), In(9)],
        [Out(20), Out(4), In(10), In(4000)],
        [Out(24), Out(4000), In(10), In(0)],
    ] {
        let mut driver = Driver::new(128, 128);
        assert_eq!(driver.send(&good(), &layout), Some((ACK, 0)), "{layout:?}");
        assert_eq!(driver.sizes(), [128, 2, 128]);
    }
}

#[test]
fn malformed_request_gets_an_error() {
    use Piece::{In, Out};
    let mut driver = Driver::new(128, 128);
    for layout in [
        &[Out(23), In(10)] as &[Piece],
        &[Out(0), In(10)],
        &[Out(10), Out(13), In(10)],
        &[In(10)],
    ] {
        assert_eq!(driver.send(&good(), layout), Some((ERROR, 0)));
    }
    for kind in [4, 5, 0x100, u16::MAX] {
        assert_eq!(driver.ask(kind, 0, 1), (ERROR, 0));
    }
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn request_that_cannot_be_answered_is_not_carried_out() {
    use Piece::{In, Out};
    let mut driver = Driver::new(128, 128);
    for layout in [
        &[Out(24)] as &[Piece],
        &[Out(24), In(0)],
        &[Out(24), In(9)],
        &[Out(24), In(4), In(5)],
        &[Out(24), Out(10)],
    ] {
        assert_eq!(driver.send(&good(), layout), None);
    }
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn buffers_outside_memory_are_survived() {
    let mut driver = Driver::new(128, 128);
    let request = GuestAddress(MEMORY - 64);
    driver.memory.write_slice(&good(), request).unwrap();
    let readable = (request.0, 24, NEXT);
    for (address, length) in [
        (MEMORY, 10),
        (MEMORY - 9, 10),
        (START, 10),
        (u64::MAX, 10),
        (MEMORY - 64, u32::MAX),
    ] {
        let written = driver.send_descriptors(0, &[readable, (address, length, WRITE)]);
        assert_eq!(written, 0, "{address:#x}");
        let chain = [(address, length, NEXT), (request.0 + 32, 10, WRITE)];
        let written = driver.send_descriptors(0, &chain);
        // A chain longer than 4 GiB ends where it gets too long, before the answer.
        assert_eq!(written, if length == u32::MAX { 0 } else { 10 });
    }
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn chain_that_loops_ends() {
    let mut driver = Driver::new(128, 128);
    let slot = driver.ring.free.pop_front().unwrap();
    let own_number = slot * PER_SLOT;
    let next = driver.ring.descriptors().0 + 16 * u64::from(own_number) + 14;
    let descriptor = (MEMORY - 64, 10, NEXT | WRITE);
    let head = (driver.ring.descriptors().0, 16, INDIRECT);
    // Indirect: one descriptor that is the indirect table itself.
    assert_eq!(driver.send_descriptors(slot, &[head]), 0);
    driver.ring.put_descriptor(
        &driver.memory,
        own_number,
        GuestAddress(descriptor.0),
        descriptor.1,
        descriptor.2,
    );
    driver
        .memory
        .write_obj(own_number, GuestAddress(next))
        .unwrap();
    driver.ring.make_available(&driver.memory, own_number);
    driver.doorbell().unwrap();
    assert_eq!(driver.take_used(), [(slot, 10)]);
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn indirect_table_has_at_most_as_many_buffers_as_the_queue() {
    let mut driver = Driver::new(128, 128);
    let table = 6 * MIB;
    let send = |driver: &mut Driver, buffers: u16| {
        let descriptor = |number: u16| {
            let last = number + 1 == buffers;
            let flags = if last { WRITE } else { NEXT };
            let length = if last { 10_u32 } else { 1 };
            let address = MEMORY - 512 + u64::from(number);
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((number + 1).to_le_bytes());
            bytes
        };
        let bytes: Vec<u8> = (0..buffers).flat_map(descriptor).collect();
        driver
            .memory
            .write_slice(&bytes, GuestAddress(table))
            .unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        driver.send_descriptors(0, &[(table, length, INDIRECT)])
    };
    let request = bytes(STATE, START, 1);
    let at = GuestAddress(MEMORY - 512);
    driver.memory.write_slice(&request, at).unwrap();
    assert_eq!(send(&mut driver, QUEUE_SIZE), 10);
    assert_eq!(send(&mut driver, QUEUE_SIZE + 1), 0);
    assert_eq!(send(&mut driver, u16::MAX), 0);
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn broken_ring_stops_the_device_until_a_reset() {
    let mut driver = Driver::new(128, 128);
    driver.ring.break_available(&driver.memory);
    let error = driver.doorbell().unwrap_err();
    assert!(matches!(error, DeviceError::Ring { queue: 0, .. }));
    assert!(driver.doorbell().is_ok());
    driver.device.again.write(1).unwrap();
    driver.backend_ready();
    assert_eq!(driver.take_used(), []);
    driver.boot();
    assert_alive_and_unchanged(&mut driver);
}

proptest! {
    #[test]
    fn any_request_is_answered(bytes in vec(any::<u8>(), 24..40)) {
        let mut driver = Driver::new(128, 128);
        let length = u32::try_from(bytes.len()).unwrap();
        let layout = [Piece::Out(length), Piece::In(10)];
        prop_assert!(driver.send(&bytes, &layout).is_some());
        prop_assert!(driver.device.map().plugged_size() <= 128 * MIB);
    }

    #[test]
    fn any_descriptors_and_rings_are_survived(
        table in vec((0..9 * MIB, 0..64_u32, 0..8_u16, 0..8_u16), 128),
        heads in vec(0..200_u16, 1..256),
    ) {
        let mut driver = Driver::new(128, 128);
        for (number, (address, length, flags, next)) in (0..).zip(&table) {
            let address = GuestAddress(*address);
            driver.ring.put_descriptor(&driver.memory, number, address, *length, *flags);
            let at = driver.ring.descriptors().0 + 16 * u64::from(number) + 14;
            driver.memory.write_obj(*next, GuestAddress(at)).unwrap();
        }
        for head in heads {
            driver.ring.make_available(&driver.memory, head);
        }
        let broken = driver.doorbell().is_err();
        driver.backend_ready();
        prop_assert!(!broken || driver.doorbell().is_ok());
        driver.boot();
        prop_assert_eq!(driver.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
        assert_alive_and_unchanged(&mut driver);
    }
}
