//! Chains that are no requests: the driver gets an error or nothing, and the device works on.

use super::driver::*;
use crate::virtio::blk::{Image, QUEUE_SIZE};
use crate::virtio::device::DeviceError;
use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

const LENGTH: usize = 64 * 1024;

fn driver() -> Driver {
    let base = file(&pattern(LENGTH));
    Driver::new(Image::overlay(base, hollow(LENGTH), LENGTH as u64), false)
}

fn assert_alive_and_unchanged(driver: &mut Driver) {
    assert_eq!(driver.read(0, LENGTH), pattern(LENGTH));
}

#[test]
fn requests_beyond_the_limits_are_errors() {
    let mut driver = driver();
    for (kind, sector, data, room) in [
        (READ, 128, 0, 512),
        (READ, 127, 0, 1024),
        (READ, u64::MAX, 0, 512),
        (READ, u64::MAX / 512, 0, 1024),
        (READ, 0, 0, 511),
        (READ, 0, 0, 0),
        (WRITE, 0, 513, 0),
        (WRITE, 0, 0, 0),
        (WRITE, 128, 512, 0),
        (GET_ID, 0, 0, 19),
        (DISCARD, 0, 0, 0),
        (DISCARD, 0, 15, 0),
        (DISCARD, 0, 17 * 16, 0),
    ] {
        let (status, _) = driver.ask(kind, sector, &vec![0; data], room);
        assert_eq!(status, IO_ERROR, "{kind} {sector} {data} {room}");
    }
    for (kind, segment, status) in [
        (DISCARD, segment(0, 8, 1), UNSUPPORTED),
        (DISCARD, segment(0, 8, 2), UNSUPPORTED),
        (WRITE_ZEROES, segment(0, 8, 0x8000_0000), UNSUPPORTED),
        (WRITE_ZEROES, segment(128, 1, 0), IO_ERROR),
        (WRITE_ZEROES, segment(u64::MAX, u32::MAX, 0), IO_ERROR),
        (DISCARD, segment(0, 0, 0), IO_ERROR),
    ] {
        assert_eq!(driver.ask(kind, 0, &segment, 0).0, status);
    }
    for kind in [2, 3, 5, 7, 9, 0x100, u32::MAX] {
        assert_eq!(driver.ask(kind, 0, &[0; 512], 512).0, UNSUPPORTED);
    }
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn chains_without_room_for_an_answer_or_outside_memory_are_returned() {
    let mut driver = driver();
    let end = MEMORY as u64;
    for chain in [
        vec![(0, 16, 0)],
        vec![(0, 0, 0)],
        vec![(0, 16, 0), (64, 0, DEVICE_WRITES)],
        vec![(0, 16, 0), (end, 1, DEVICE_WRITES)],
        vec![(u64::MAX, 16, DEVICE_WRITES)],
    ] {
        let chain: Vec<_> = chain
            .into_iter()
            .map(|(a, l, f)| (GuestAddress(a), l, f))
            .collect();
        driver.send_chain(0, 0, &chain);
        assert_eq!(driver.rings[0].take_used(&driver.memory), Some((0, 0)));
    }
    let header = driver.rings[0].slot_address(0);
    driver.memory.write_slice(&[0; 16], header).unwrap();
    for data in [
        (GuestAddress(end - 256), 512),
        (GuestAddress(end), 512),
        (GuestAddress(u64::MAX), 512),
        (GuestAddress(0), u32::MAX as usize),
    ] {
        let status = (GuestAddress(header.0 + 16), 1, DEVICE_WRITES);
        let chain = [(header, 16, 0), (data.0, data.1, DEVICE_WRITES), status];
        driver.memory.write_obj(0xff_u8, status.0).unwrap();
        driver.send_chain(0, 0, &chain);
        driver.settle();
        let used = driver.rings[0].take_used(&driver.memory);
        // A chain longer than 4 GiB ends where it gets too long, before its status.
        assert!(used.is_some(), "{data:?}");
        assert_ne!(driver.status(0, 0), OK);
    }
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn request_may_be_split_anywhere() {
    let mut driver = driver();
    let at = driver.rings[0].slot_address(0).0;
    driver
        .memory
        .write_slice(&[0; 16], GuestAddress(at))
        .unwrap();
    let chain = [
        (GuestAddress(at), 3, 0),
        (GuestAddress(at + 3), 13, 0),
        (GuestAddress(at + 100), 500, DEVICE_WRITES),
        (GuestAddress(at + 600), 13, DEVICE_WRITES),
    ];
    driver.send_chain(0, 0, &chain);
    driver.settle();
    assert_eq!(driver.rings[0].take_used(&driver.memory), Some((0, 513)));
    let mut data = vec![0xff; 513];
    driver
        .memory
        .read_slice(&mut data, GuestAddress(at + 100))
        .unwrap();
    assert_eq!(data[..512], pattern(LENGTH)[..512]);
    assert_eq!(data[512], OK);
}

#[test]
fn broken_ring_stops_the_disk_until_a_reset() {
    let mut driver = driver();
    driver.send(0, READ, 0, &[], 4096);
    driver.rings[0].break_available(&driver.memory);
    let error = driver.doorbell(0).unwrap_err();
    assert!(matches!(error, DeviceError::Ring { queue: 0, .. }));
    driver.settle();
    assert!(driver.doorbell(0).is_ok());
    assert_eq!(driver.rings[0].take_used(&driver.memory), None);
    driver.boot();
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn what_was_under_way_at_a_reset_is_not_returned_after_it() {
    let mut driver = driver();
    for sector in 0..32 {
        driver.send(0, READ, sector, &[], 4096);
    }
    driver.boot();
    driver.backend_ready().unwrap();
    assert_eq!(driver.rings[0].take_used(&driver.memory), None);
    assert_alive_and_unchanged(&mut driver);
}

#[test]
fn driver_that_offers_more_than_it_has_is_served_in_turns() {
    let mut driver = driver();
    let slot = driver.send(0, READ, 0, &[], 512);
    // The same chain again and again, as fast as the ring takes it.
    for _ in 0..20 {
        for _ in 0..QUEUE_SIZE / 2 {
            driver.rings[0].make_available(&driver.memory, slot * 4);
        }
        driver.doorbell(0).unwrap();
        driver.settle();
    }
    driver.boot();
    assert_alive_and_unchanged(&mut driver);
}

proptest! {
    #[test]
    fn any_header_and_data_is_answered(
        kind in prop_oneof![0..16_u32, any::<u32>()],
        sector in prop_oneof![0..140_u64, any::<u64>()],
        data in vec(any::<u8>(), 0..600),
        room in 0..2000_usize,
    ) {
        let mut driver = driver();
        let (status, written) = driver.ask(kind, sector, &data, room);
        prop_assert!(status <= UNSUPPORTED);
        prop_assert!(written as usize <= room + 1);
        prop_assert_eq!(driver.read(0, 512).len(), 512);
    }

    #[test]
    fn any_descriptors_and_rings_are_survived(
        table in vec((0..50_u64 << 20, 0..8192_u32, 0..8_u16, 0..8_u16), 128),
        heads in vec(0..200_u16, 1..256),
    ) {
        let mut driver = driver();
        for (number, (address, length, flags, next)) in (0..).zip(&table) {
            let address = GuestAddress(*address);
            driver.rings[0].put_descriptor(&driver.memory, number, address, *length, *flags);
            let at = driver.rings[0].descriptors().0 + 16 * u64::from(number) + 14;
            driver.memory.write_obj(*next, GuestAddress(at)).unwrap();
        }
        for head in heads {
            driver.rings[0].make_available(&driver.memory, head);
            // It may break its rings, by descriptors or by what is written over them.
            drop(driver.doorbell(0));
            drop(driver.backend_ready());
        }
        driver.boot();
        prop_assert_eq!(driver.read(0, LENGTH).len(), LENGTH);
    }
}
