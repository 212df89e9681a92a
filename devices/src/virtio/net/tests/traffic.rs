//! Frames of guests and networks that follow the rules.

use super::driver::*;
use crate::virtio::device::VirtioDevice;
use crate::virtio::net::{HEADER_LENGTH, RECEIVE_QUEUE, TRANSMIT_QUEUE};

#[test]
fn a_frame_goes_out_as_the_guest_wrote_it() {
    let mut driver = Driver::new();
    let sent = frame(OURS, 1500, 7);
    driver.queue_frame(&sent, &[12, 14, 1498]);
    driver.notify(TRANSMIT_QUEUE).unwrap();
    assert_eq!(driver.arrived().unwrap(), sent);
    assert!(driver.transmit.take_used(&driver.memory).is_some());
    assert_eq!(driver.line.raised(), 1);
}

#[test]
fn a_frame_comes_in_and_says_how_many_buffers_it_has() {
    let mut driver = Driver::new();
    driver.add_buffers(&[&[1600], &[100, 1500]]);
    let sent = frame(OTHER, 1500, 3);
    driver.far_end.send(&sent).unwrap();
    driver.run();
    let got = driver.take_received().unwrap();
    assert_eq!(got[10..12], [1, 0]);
    assert_eq!(got[HEADER_LENGTH..], sent[HEADER_LENGTH..]);
    assert_eq!(driver.take_received(), None);
}

#[test]
fn a_large_frame_is_spread_over_buffers_that_appear_at_once() {
    let mut driver = Driver::new();
    driver.add_buffers(&[&[4096][..]; 20]);
    let sent = frame(OTHER, 65_000, 5);
    driver.far_end.send(&sent).unwrap();
    driver.run();
    let first = driver.take_received().unwrap();
    let count = u16::from_le_bytes([first[10], first[11]]);
    assert_eq!(usize::from(count), sent.len().div_ceil(4096));
    let mut got = first;
    for _ in 1..count {
        got.extend(driver.take_received().unwrap());
    }
    assert_eq!(got[HEADER_LENGTH..], sent[HEADER_LENGTH..]);
    assert_eq!(driver.take_received(), None);
    assert!(driver.line.raised() >= 1);
}

#[test]
fn a_frame_waits_for_buffers_without_keeping_anybody_awake() {
    let mut driver = Driver::new();
    driver.add_buffers(&[&[1600]]);
    for seed in 0..3 {
        driver.far_end.send(&frame(OTHER, 1400, seed)).unwrap();
    }
    driver.run();
    assert!(driver.take_received().is_some());
    assert!(!driver.wants_a_turn());
    driver.add_buffers(&[&[1000]]);
    assert_eq!(driver.take_received(), None);
    driver.add_buffers(&[&[1000], &[1600]]);
    driver.run();
    let spread = [driver.take_received(), driver.take_received()];
    let spread: Vec<u8> = spread.into_iter().flatten().flatten().collect();
    assert_eq!(
        spread[HEADER_LENGTH..],
        frame(OTHER, 1400, 1)[HEADER_LENGTH..]
    );
    let last = driver.take_received().unwrap();
    assert_eq!(
        last[HEADER_LENGTH..],
        frame(OTHER, 1400, 2)[HEADER_LENGTH..]
    );
}

#[test]
fn a_turn_is_bounded_both_ways() {
    let mut driver = Driver::new();
    for _ in 0..64 {
        driver.queue_frame(&frame(OURS, 60, 0), &[84]);
    }
    // The ring of the tests has as many slots as a turn has frames; the device cannot know that it is over.
    driver.notify(TRANSMIT_QUEUE).unwrap();
    assert!(driver.wants_a_turn());
    assert_eq!(driver.run(), 1);
}

#[test]
fn a_card_without_a_port_has_no_link_and_takes_frames() {
    let mut driver = Driver::new();
    assert_eq!(driver.status(), 1);
    driver.clone_device();
    assert_eq!(driver.status(), 0);
    driver.send(&frame(OURS, 60, 0));
    assert!(driver.transmit.take_used(&driver.memory).is_some());
    assert_eq!(driver.arrived(), None);
    driver.add_buffers(&[&[1600]]);
    assert_eq!(driver.run(), 0);
}

#[test]
fn a_clone_is_silent_until_it_has_its_own_address() {
    let mut driver = Driver::new();
    driver.clone_device();
    let (cable, far_end) = Cable::new();
    driver.device.connect(OTHER, Box::new(cable)).unwrap();
    driver.far_end = far_end;
    assert_eq!(driver.status(), 1);
    let mut mac = [0; 6];
    driver.device.read_config(0, &mut mac);
    assert_eq!(mac, OTHER.0);
    driver.send(&frame(OURS, 60, 0));
    assert_eq!(driver.arrived(), None);
    driver.send(&frame(OTHER, 60, 0));
    assert_eq!(driver.arrived().unwrap(), frame(OTHER, 60, 0));
    assert_eq!(driver.device.save().mac, OTHER);
}

#[test]
fn the_tap_offloads_what_the_driver_took() {
    let mut driver = Driver::new();
    assert_eq!(driver.fate.lock().unwrap().offloads, Some(7));
    driver.boot(0);
    assert_eq!(driver.fate.lock().unwrap().offloads, Some(0));
    // Without mergeable buffers each has to have room for a whole frame.
    driver.add_buffers(&[&[0x1_1000]]);
    driver.far_end.send(&frame(OTHER, 60_000, 1)).unwrap();
    driver.run();
    assert_eq!(driver.take_received().unwrap().len(), 60_024);
}

#[test]
fn an_interface_that_is_removed_is_a_cut_cable() {
    let mut driver = Driver::new();
    driver.add_buffers(&[&[1600]]);
    driver.fate.lock().unwrap().gone = true;
    driver.far_end.send(&frame(OTHER, 60, 0)).unwrap();
    let generation = driver.line.raised();
    driver.run();
    assert_eq!(driver.status(), 0);
    assert!(driver.line.raised() > generation);
    driver.send(&frame(OURS, 60, 0));
    assert!(driver.transmit.take_used(&driver.memory).is_some());
    driver.notify(RECEIVE_QUEUE).unwrap();
    assert_eq!(driver.run(), 0);
}
