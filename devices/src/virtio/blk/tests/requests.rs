//! What a well-behaved driver gets from a disk.

use super::driver::*;
use crate::virtio::blk::{Blk, BlkState, BlkStateError, Image};
use crate::virtio::device::VirtioDevice;
use std::fs::OpenOptions;
use std::sync::Arc;

const LENGTH: usize = 64 * 1024 + SECTOR;

fn raw() -> (Driver, Arc<std::fs::File>) {
    let file = file(&pattern(LENGTH));
    let image = Image::raw(file.clone(), LENGTH as u64);
    (Driver::new(image, false), file)
}

#[test]
fn what_is_written_is_read_and_is_in_the_file() {
    for with_thread in [false, true] {
        let (mut driver, file) = raw();
        assert!(!driver.device.jobs.has_engine());
        if with_thread {
            driver.device.jobs.use_thread();
        }
        assert_eq!(driver.read(0, LENGTH), pattern(LENGTH));
        let data = vec![0xab; 3 * SECTOR];
        assert_eq!(driver.ask(WRITE, 2, &data, 0), (OK, 1));
        assert_eq!(driver.ask(FLUSH, 0, &[], 0), (OK, 1));
        let mut expected = pattern(LENGTH);
        expected[2 * SECTOR..5 * SECTOR].fill(0xab);
        assert_eq!(driver.read(0, LENGTH), expected);
        assert_eq!(content(&file), expected);
    }
}

#[test]
fn id_is_told_and_nothing_is_started_for_it() {
    let (mut driver, _) = raw();
    let slot = driver.send(0, GET_ID, 0, &[], 20);
    assert_eq!(driver.finish(0, slot), (OK, 21));
    assert_eq!(
        driver.data(0, slot, 20),
        b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert!(!driver.device.jobs.has_engine());
}

#[test]
fn zeroes_and_discarded_sectors_read_as_zeroes() {
    let (mut driver, _) = raw();
    let two = [segment(0, 2, 0), segment(8, 8, 0)].concat();
    assert_eq!(driver.ask(DISCARD, 0, &two, 0), (OK, 1));
    assert_eq!(driver.ask(WRITE_ZEROES, 0, &segment(20, 1, 1), 0), (OK, 1));
    let mut expected = pattern(LENGTH);
    expected[..2 * SECTOR].fill(0);
    expected[8 * SECTOR..16 * SECTOR].fill(0);
    expected[20 * SECTOR..21 * SECTOR].fill(0);
    assert_eq!(driver.read(0, LENGTH), expected);
}

#[test]
fn read_only_disk_is_one() {
    let image = Image::raw(file(&pattern(LENGTH)), LENGTH as u64);
    let mut driver = Driver::new(image, true);
    let read_only = 1 << virtio_bindings::virtio_blk::VIRTIO_BLK_F_RO;
    assert_ne!(driver.device.features() & read_only, 0);
    for (kind, data) in [
        (WRITE, vec![1; SECTOR]),
        (DISCARD, segment(0, 8, 0)),
        (WRITE_ZEROES, segment(0, 8, 0)),
    ] {
        assert_eq!(driver.ask(kind, 0, &data, 0), (IO_ERROR, 1));
    }
    assert_eq!(driver.read(0, LENGTH), pattern(LENGTH));
}

#[test]
fn full_disk_is_an_error_of_the_request_and_nothing_more() {
    for with_thread in [false, true] {
        let full = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/full")
            .unwrap();
        let image = Image::overlay(file(&pattern(LENGTH)), Arc::new(full), LENGTH as u64);
        let mut driver = Driver::new(image, false);
        if with_thread {
            driver.device.jobs.use_thread();
        }
        assert_eq!(driver.ask(WRITE, 0, &[1; 512], 0), (IO_ERROR, 1));
        assert_eq!(driver.ask(WRITE, 0, &[1; 8192], 0), (IO_ERROR, 1));
        assert_eq!(driver.read(0, LENGTH), pattern(LENGTH));
    }
}

#[test]
fn file_that_was_cut_short_is_an_error_of_the_request() {
    let (mut driver, file) = raw();
    file.set_len(1024).unwrap();
    assert_eq!(driver.ask(READ, 0, &[], 4096).0, IO_ERROR);
    assert_eq!(driver.read(0, 1024), &pattern(LENGTH)[..1024]);
}

#[test]
fn configuration_says_what_the_disk_can() {
    let (driver, _) = raw();
    let field = |offset: u64, length: usize| {
        let mut bytes = [0; 8];
        driver.device.read_config(offset, &mut bytes[..length]);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(field(0, 8), 129);
    assert_eq!(field(12, 4), 126);
    assert_eq!(field(20, 4), 512);
    assert_eq!((field(24, 1), field(26, 2), field(28, 4)), (3, 8, 8));
    assert_eq!(field(34, 2), 2);
    assert_eq!((field(36, 4), field(56, 1)), (1 << 22, 1));
    assert_eq!((field(60, 8), field(u64::MAX, 8)), (0, 0));
}

#[test]
fn nothing_is_under_way_once_a_disk_has_settled() {
    let (mut driver, file) = raw();
    for number in 0..30 {
        let data = vec![u8::try_from(number).unwrap() + 1; 2 * SECTOR];
        driver.send(
            u16::try_from(number % 2).unwrap(),
            WRITE,
            number * 2,
            &data,
            0,
        );
    }
    driver.settle();
    let after = content(&file);
    for number in 0..30_usize {
        let written = &after[number * 2 * SECTOR..(number + 1) * 2 * SECTOR];
        assert!(written.iter().all(|byte| usize::from(*byte) == number + 1));
    }
    for queue in 0..2 {
        let used = std::iter::from_fn(|| driver.rings[queue].take_used(&driver.memory));
        assert_eq!(used.count(), 15);
    }
}

#[test]
fn empty_slot_has_no_sectors_and_is_filled_in_a_clone() {
    let mut driver = Driver::new(Image::nothing(), false);
    assert_eq!(driver.ask(READ, 0, &[], 512).0, IO_ERROR);
    assert_eq!(driver.ask(FLUSH, 0, &[], 0), (OK, 1));
    let state = driver.device.save();
    let image = Image::raw(file(&pattern(LENGTH)), LENGTH as u64);
    driver.device = Blk::restore(image, "disk-0", true, &state).unwrap();
    driver
        .on_device(|device, rings| device.activate(0, rings))
        .unwrap();
    assert_eq!(driver.read(0, LENGTH), pattern(LENGTH));
    assert_eq!(driver.ask(WRITE, 0, &[1; 512], 0).0, IO_ERROR);
}

#[test]
fn clone_gets_the_disk_that_its_guest_knows() {
    let state = BlkState {
        length: 1024,
        read_only: false,
    };
    assert_eq!(state.check(1024), Ok(()));
    let other = BlkStateError::OtherLength {
        found: 512,
        expected: 1024,
    };
    assert_eq!(state.check(512), Err(other));
    let odd = BlkState { length: 1, ..state };
    assert_eq!(odd.check(1), Err(BlkStateError::Length { found: 1 }));
}
