//! An overlay compared with a model: bytes in memory.

use super::driver::*;
use crate::virtio::blk::Image;
use proptest::collection::vec;
use proptest::prelude::*;

/// 20 clusters, the last one cut short.
const SECTORS: usize = 19 * 8 + 3;
const LENGTH: usize = SECTORS * SECTOR;

#[derive(Debug, Clone)]
enum Change {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Discard(usize, usize),
    Check,
}

fn change() -> impl Strategy<Value = Change> {
    let range = || (0..SECTORS, 1..40_usize).prop_map(|(at, n)| (at, n.min(SECTORS - at)));
    prop_oneof![
        4 => (range(), 1..=255_u8).prop_map(|((at, n), byte)| Change::Write(at, n, byte)),
        1 => range().prop_map(|(at, n)| Change::Zero(at, n)),
        1 => range().prop_map(|(at, n)| Change::Discard(at, n)),
        1 => Just(Change::Check),
    ]
}

/// Whether a change overlaps one that is under way: then their order is nobody's promise.
fn overlaps(under_way: &[(usize, usize)], at: usize, count: usize) -> bool {
    under_way
        .iter()
        .any(|(other, n)| at < other + n && *other < at + count)
}

fn run(changes: &[Change], with_thread: bool) {
    let base = file(&pattern(LENGTH));
    let own = hollow(LENGTH);
    let image = Image::overlay(base.clone(), own.clone(), LENGTH as u64);
    let mut driver = Driver::new(image, false);
    if with_thread {
        driver.device.jobs.use_thread();
    }
    let mut model = pattern(LENGTH);
    let mut under_way = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        let (at, count) = match *change {
            Change::Write(at, n, _) | Change::Zero(at, n) | Change::Discard(at, n) => (at, n),
            Change::Check => (0, SECTORS),
        };
        if overlaps(&under_way, at, count) || under_way.len() > 20 {
            driver.settle();
            under_way.clear();
            driver.rings.iter_mut().for_each(|ring| {
                while let Some((slot, _)) = ring.take_used(&driver.memory) {
                    ring.free.push_back(slot);
                }
            });
        }
        let queue = u16::try_from(number % 2).unwrap();
        let part = &mut model[at * SECTOR..(at + count) * SECTOR];
        let sector = at as u64;
        let sectors = u32::try_from(count).unwrap();
        match *change {
            Change::Write(_, _, byte) => {
                part.fill(byte);
                driver.send(queue, WRITE, sector, part, 0);
            }
            Change::Zero(..) => {
                part.fill(0);
                driver.send(queue, WRITE_ZEROES, 0, &segment(sector, sectors, 1), 0);
            }
            Change::Discard(..) => {
                part.fill(0);
                driver.send(queue, DISCARD, 0, &segment(sector, sectors, 0), 0);
            }
            Change::Check => {
                assert_eq!(driver.read(0, LENGTH), model);
                continue;
            }
        }
        under_way.push((at, count));
    }
    driver.settle();
    // What a snapshot of the disk would be.
    let mut merged = content(&base);
    let own = content(&own);
    for range in driver.device.image().changed().unwrap() {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        merged[range.clone()].copy_from_slice(&own[range]);
    }
    assert_eq!(merged, model);
    assert_eq!(content(&base), pattern(LENGTH));
}

proptest! {
    #[test]
    fn overlay_reads_as_what_was_written(changes in vec(change(), 1..60), with_thread: bool) {
        run(&changes, with_thread);
    }
}
