//! The device against a model that is too simple to be wrong: one flag for each block.

use super::driver::*;
use crate::virtio::mem::PluggedRange;
use proptest::collection::vec;
use proptest::prelude::*;
use std::ops::Range;

/// Blocks of the region: more than one of Linux's units, and no multiple of it.
const BLOCKS: usize = 150;
const BLOCK: u64 = 2;

#[derive(Debug, Clone, Copy)]
enum Step {
    Ask(u16, usize, usize),
    Request(u64),
    Break(bool),
    Reboot,
    Clone,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_u16, 0..BLOCKS, 0..40_usize).prop_map(|(kind, at, n)| Step::Ask(kind, at, n)),
        2 => (0..BLOCKS, 0..200_usize).prop_map(|(at, n)| Step::Ask(STATE, at, n)),
        1 => Just(Step::Ask(UNPLUG_ALL, 0, 0)),
        2 => (0..=BLOCKS as u64).prop_map(Step::Request),
        1 => any::<bool>().prop_map(Step::Break),
        1 => Just(Step::Reboot),
        1 => Just(Step::Clone),
    ]
}

#[derive(Debug)]
struct Model {
    plugged: [bool; BLOCKS],
    requested: usize,
    usable: usize,
    broken: bool,
}

impl Model {
    fn new() -> Self {
        Self {
            plugged: [false; BLOCKS],
            requested: 0,
            usable: 0,
            broken: false,
        }
    }

    fn count(&self) -> usize {
        self.plugged.iter().filter(|plugged| **plugged).count()
    }

    fn needed(&self) -> usize {
        (self.requested.div_ceil(64) * 64).min(BLOCKS)
    }

    fn ask(&mut self, kind: u16, range: Range<usize>) -> (u16, u16) {
        if kind == UNPLUG_ALL {
            if self.broken && self.usable > 0 {
                return (BUSY, 0);
            }
            self.plugged = [false; BLOCKS];
            self.usable = self.needed();
            return (ACK, 0);
        }
        if range.is_empty() || range.end > self.usable {
            return (ERROR, 0);
        }
        let length = range.len();
        let total = self.count();
        let blocks = &mut self.plugged[range];
        let plugged = blocks.iter().filter(|plugged| **plugged).count();
        match kind {
            PLUG if plugged > 0 => (ERROR, 0),
            PLUG if total + length > self.requested => (NACK, 0),
            UNPLUG if plugged < length => (ERROR, 0),
            UNPLUG if self.broken => (BUSY, 0),
            STATE if plugged == length => (ACK, 0),
            STATE if plugged == 0 => (ACK, 1),
            STATE => (ACK, 2),
            _ => {
                blocks.fill(kind == PLUG);
                (ACK, 0)
            }
        }
    }

    fn ranges(&self) -> Vec<PluggedRange> {
        let mut ranges: Vec<PluggedRange> = Vec::new();
        for (number, _) in (0..).zip(self.plugged).filter(|(_, plugged)| *plugged) {
            let offset = number * BLOCK * MIB;
            match ranges.last_mut() {
                Some(last) if last.offset + last.length == offset => last.length += BLOCK * MIB,
                _ => ranges.push(PluggedRange {
                    offset,
                    length: BLOCK * MIB,
                }),
            }
        }
        ranges
    }
}

fn take(step: Step, driver: &mut Driver, model: &mut Model) {
    match step {
        Step::Ask(kind, at, blocks) => {
            let answer = driver.ask(kind, at as u64 * BLOCK, u16::try_from(blocks).unwrap());
            assert_eq!(answer, model.ask(kind, at..at + blocks));
        }
        Step::Request(blocks) => {
            driver.request(blocks * BLOCK);
            model.requested = usize::try_from(blocks).unwrap();
            model.usable = model.usable.max(model.needed());
        }
        Step::Break(broken) => {
            driver.host.set_broken(broken);
            model.broken = broken;
        }
        Step::Reboot => driver.boot(),
        Step::Clone => driver.clone_device(),
    }
}

proptest! {
    #[test]
    fn device_does_what_the_model_does(steps in vec(step(), 1..60)) {
        let mut driver = Driver::new(BLOCKS as u64 * BLOCK, 0);
        let mut model = Model::new();
        for step in steps {
            take(step, &mut driver, &mut model);
            let sizes = [model.usable, model.count(), model.requested];
            prop_assert_eq!(driver.sizes(), sizes.map(|blocks| blocks as u64 * BLOCK));
            let ranges: Vec<_> = driver.device.map().plugged_ranges().collect();
            prop_assert_eq!(ranges, model.ranges());
            prop_assert_eq!(driver.device.plugged().bytes() / MIB, sizes[1] as u64 * BLOCK);
        }
    }
}
