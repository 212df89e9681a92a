//! Clones whose guests have pages mapped before they run.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use snapshot::WorkingSet;
use vmm::{EarlyVm, FrozenMachine, Machine, PreparedClone, layout};

use crate::{Bench, assert_consecutive, collect, counter, freeze, memory_size, state_of};

const PAGE: u64 = 4096;
/// Of the guest's top page table, which entry the program hangs its own tables into.
const HOOK: u64 = layout::PAGE_TABLES.0 + 256 * 8;
/// What the clone tells its guest is here.
const GENERATION: Range<usize> = 0xf_f000..0xf_f010;

/// Pages from which the program borrows: none of the guest's own.
const WRITTEN: Range<u64> = 0x80_0000..0x80_0000 + 8 * PAGE;
/// More pages than the program reads at once, in several pieces of 2 MiB.
const TOUCHED: [Range<u64>; 2] = [WRITTEN, 0xc0_0000..0xc0_0000 + 1100 * PAGE];

/// A template of a guest that counts, and what it has printed.
struct Counted {
    bench: Bench,
    frozen: FrozenMachine,
    output: Vec<u8>,
}

impl Counted {
    fn new(before_the_end: impl FnOnce(&File)) -> Self {
        let bench = Bench::new(&counter());
        let (mut machine, file) = bench.template();
        let mut output = Vec::new();
        machine.resume();
        collect(&machine, &mut output, 100);
        let frozen = freeze(&mut machine, &mut output);
        drop(machine);
        // The memory that is mapped is not all zeros.
        for page in 0..8 {
            let content = [0x60 + page; 4096];
            file.write_all_at(&content, WRITTEN.start + u64::from(page) * PAGE)
                .unwrap();
        }
        before_the_end(&file);
        Self {
            bench,
            frozen,
            output,
        }
    }

    fn prepare(&self) -> PreparedClone {
        let (state, memory) = (state_of(&self.frozen), self.bench.memory_layers());
        PreparedClone::new(&state, &memory, &set(), EarlyVm::begin()).unwrap()
    }

    fn finish(&self, prepared: PreparedClone, name: &str) -> Machine {
        let config = self.bench.clone_config(name);
        prepared.into_machine(&config).unwrap()
    }
}

fn set() -> WorkingSet {
    WorkingSet::new(vec![WRITTEN], TOUCHED.to_vec())
}

/// What of the second part of [`TOUCHED`] this process has mapped, in bytes.
fn mapped(machine: &Machine) -> u64 {
    let there = machine.working_set().unwrap();
    let [_, read] = TOUCHED;
    let inside = |part: &Range<u64>| {
        let end = part.end.min(read.end);
        end.saturating_sub(part.start.max(read.start))
    };
    there.touched().iter().map(inside).sum()
}

/// The memory of a paused machine, without the page that says which clone it is.
fn memory(machine: &Machine) -> Vec<u8> {
    let copy = tempfile::tempfile().unwrap();
    let length = memory_size().bytes();
    copy.set_len(length).unwrap();
    let whole = 0..length;
    let source = machine.memory_source();
    source.copy_to(&copy, &[whole], &|| true).unwrap();
    content(&copy)
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(memory_size().bytes()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes[GENERATION].fill(0);
    bytes
}

#[test]
fn what_is_mapped_ahead_is_there_and_the_guest_is_as_it_was() {
    let mut template = Counted::new(|_| ());
    let plain = template.finish(template.prepare(), "plain.sock");
    assert_eq!(mapped(&plain), 0);
    drop(plain);

    let prepared = template.prepare().map_ahead(&set()).unwrap();
    let mut clone = template.finish(prepared, "ahead.sock");
    let [_, read] = TOUCHED;
    assert_eq!(mapped(&clone), read.end - read.start);
    let differs = memory(&clone)
        .iter()
        .zip(content(&template.bench.memory_file()))
        .position(|(here, there)| *here != there);
    assert_eq!(differs, None, "first difference");

    clone.resume();
    collect(&clone, &mut template.output, 500);
    assert_consecutive(&template.output);
}

#[test]
fn a_guest_that_uses_the_hook_itself_is_left_alone() {
    let mut template = Counted::new(|file| {
        // An entry that is not present is the guest's, too.
        file.write_all_at(&[2], HOOK).unwrap();
    });
    let prepared = template.prepare().map_ahead(&set()).unwrap();
    let mut clone = template.finish(prepared, "used.sock");
    assert_eq!(mapped(&clone), 0);
    clone.resume();
    collect(&clone, &mut template.output, 100);
    assert_consecutive(&template.output);
}
