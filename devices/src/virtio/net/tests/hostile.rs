//! Guests that break their queues: they lose the device until they reset it, and nothing else happens.

use super::driver::*;
use crate::virtio::device::VirtioDevice;
use crate::virtio::net::{RECEIVE_QUEUE, TRANSMIT_QUEUE};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// The device works for a driver that resets it.
fn assert_recovers(driver: &mut Driver) {
    let features = driver.device.features();
    driver.boot(features);
    while driver.arrived().is_some() {}
    driver.send(&frame(OURS, 60, 1));
    assert_eq!(driver.arrived().unwrap(), frame(OURS, 60, 1));
    driver.add_buffers(&[&[4096][..]; 32]);
    driver.far_end.send(&frame(OTHER, 60, 2)).unwrap();
    driver.run();
    let mut last = None;
    while let Some(frame) = driver.take_received() {
        last = Some(frame);
    }
    assert_eq!(last.unwrap()[12..], frame(OTHER, 60, 2)[12..]);
}

#[test]
fn frames_that_are_none_are_dropped() {
    let mut driver = Driver::new();
    for lengths in [
        &[0][..],
        &[11],
        &[12],
        &[25],
        &[0x1_0020],
        &[0xffff, 0xffff],
    ] {
        driver.queue_frame(&[], lengths);
        driver.notify(TRANSMIT_QUEUE).unwrap();
        assert!(driver.transmit.take_used(&driver.memory).is_some());
        assert_eq!(driver.arrived(), None);
    }
    assert_recovers(&mut driver);
}

#[test]
fn empty_receive_buffers_break_the_device() {
    let mut driver = Driver::new();
    driver.receive.add(&driver.memory, 0, &[0], true);
    driver.far_end.send(&frame(OTHER, 60, 0)).unwrap();
    assert!(driver.notify(RECEIVE_QUEUE).is_err());
    driver.far_end.send(&frame(OTHER, 60, 0)).unwrap();
    assert_eq!(driver.run(), 0);
    assert_recovers(&mut driver);
}

#[test]
fn receive_buffers_for_reading_break_the_device() {
    let mut driver = Driver::new();
    driver.receive.add(&driver.memory, 0, &[4096], false);
    driver.far_end.send(&frame(OTHER, 60, 0)).unwrap();
    assert!(driver.notify(RECEIVE_QUEUE).is_err());
    assert_recovers(&mut driver);
}

#[test]
fn buffers_outside_of_memory_break_the_device() {
    for queue in [RECEIVE_QUEUE, TRANSMIT_QUEUE] {
        let mut driver = Driver::new();
        driver.far_end.send(&frame(OTHER, 60, 0)).unwrap();
        let outside = GuestAddress(u64::MAX - 8);
        let flags = if queue == RECEIVE_QUEUE { 2 } else { 0 };
        let ring = if queue == RECEIVE_QUEUE {
            &mut driver.receive
        } else {
            &mut driver.transmit
        };
        ring.put_descriptor(&driver.memory, 0, outside, 64, flags);
        ring.make_available(&driver.memory, 0);
        assert!(driver.notify(queue).is_err());
        assert_recovers(&mut driver);
    }
}

#[test]
fn a_broken_available_ring_breaks_the_device() {
    for queue in [RECEIVE_QUEUE, TRANSMIT_QUEUE] {
        let mut driver = Driver::new();
        driver.far_end.send(&frame(OTHER, 60, 0)).unwrap();
        driver.receive.break_available(&driver.memory);
        driver.transmit.break_available(&driver.memory);
        assert!(driver.notify(queue).is_err());
        assert_recovers(&mut driver);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes for descriptors, any heads, any frames.
    #[test]
    fn no_queue_harms_the_device(
        table in proptest::collection::vec(any::<u8>(), 512),
        heads in proptest::collection::vec(0_u16..40, 0..40),
        low_addresses in any::<bool>(),
        frames in proptest::collection::vec(1_usize..5000, 0..4),
        mergeable in any::<bool>(),
    ) {
        let mut driver = Driver::new();
        let features = driver.device.features() & !(u64::from(!mergeable) << 15);
        driver.boot(features);
        for descriptors in [driver.receive.descriptors(), driver.transmit.descriptors()] {
            driver.memory.write_slice(&table, descriptors).unwrap();
            for number in (0..32).filter(|_| low_addresses) {
                // Mostly within memory, and chained within the table.
                let at = descriptors.0 + 16 * number;
                driver.memory.write_slice(&[0; 5], GuestAddress(at + 3)).unwrap();
                driver.memory.write_slice(&[0; 2], GuestAddress(at + 10)).unwrap();
                driver.memory.write_slice(&[0], GuestAddress(at + 15)).unwrap();
            }
        }
        for head in heads {
            driver.receive.make_available(&driver.memory, head);
            driver.transmit.make_available(&driver.memory, head);
        }
        for length in frames {
            driver.far_end.send(&frame(OTHER, length, 0)).unwrap();
        }
        for queue in [RECEIVE_QUEUE, TRANSMIT_QUEUE, RECEIVE_QUEUE] {
            let _broken = driver.notify(queue);
        }
        for _ in 0..8 {
            let _broken = driver.on_device(|device, rings| device.backend_ready(rings));
        }
        assert_recovers(&mut driver);
    }
}
