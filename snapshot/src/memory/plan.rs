//! Which pages of a running VM become a layer of their own.

use std::ops::Range;

use rangemap::RangeSet;

use super::PAGE_SIZE;
use super::layer_map::{LayerMap, MAX_LAYERS, MAX_RUNS};

/// Parts of a VM's memory, in bytes of its memory file, that are not what its template has there.
#[derive(Clone, Debug, Default)]
pub struct OwnMemory {
    /// Pages that this VM has written. Everywhere else in its memory is either its template's content or,
    /// where that was replaced, zero.
    pub written: Vec<Range<u64>>,
    /// Where nothing of the template's content is left: memory that was added, or given back since.
    pub replaced: Vec<Range<u64>>,
}

/// What is done with [`OwnMemory`].
#[derive(Debug)]
pub(crate) struct OwnPlan {
    /// What is the layer's own.
    pub own: RangeSet<u64>,
    /// What of it has to be copied; the rest is zero.
    pub copied: RangeSet<u64>,
}

/// Runs that are no further apart than this become one: each costs every clone a mapping. Of an idle Linux
/// guest, whose pages lie far apart, this leaves half of the runs and copies as much again.
const LEAST_GAP: u64 = 8 * PAGE_SIZE;

impl OwnPlan {
    /// Exactly what the VM has itself.
    pub(crate) fn exact(memory: &OwnMemory) -> Self {
        let copied: RangeSet<u64> = memory.written.iter().cloned().collect();
        let own = memory.written.iter().chain(&memory.replaced);
        Self {
            own: own.cloned().collect(),
            copied,
        }
    }

    /// What goes into a layer above `parent`'s: as little as can be, but with runs joined until they are few
    /// enough to be mapped.
    pub(crate) fn layer(memory: &OwnMemory, parent: &LayerMap, length: u64) -> Self {
        let exact = Self::exact(memory);
        let most = most_runs(parent.layers() + 1);
        let mut gap = LEAST_GAP;
        loop {
            let own = close_gaps(&exact.own, gap);
            // A single run adds two at most, for which there is always room.
            if own.len() <= 1 || parent.child(length, &own).overlays() <= most {
                return exact.with_gaps_closed(own);
            }
            gap *= 2;
        }
    }

    fn with_gaps_closed(mut self, own: RangeSet<u64>) -> Self {
        for range in own.iter() {
            self.copied.extend(self.own.gaps(range));
        }
        self.own = own;
        self
    }
}

/// The most runs of a memory with this many layers. Half of them are for the first generation, and every
/// later one has a share that those before it cannot use up: it would have to copy all that is between.
fn most_runs(layers: usize) -> usize {
    let shares = MAX_LAYERS - 2;
    MAX_RUNS / 2 + MAX_RUNS / 2 * layers.saturating_sub(2) / shares
}

/// The ranges, joined where no more than `gap` bytes are between them.
fn close_gaps(ranges: &RangeSet<u64>, gap: u64) -> RangeSet<u64> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges.iter() {
        match joined.last_mut() {
            Some(last) if range.start - last.end <= gap => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    joined.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE;
    const LENGTH: u64 = 1 << 30;

    fn every(step: u64, count: u64) -> Vec<Range<u64>> {
        let page = |n: u64| n * step * PAGE..(n * step + 1) * PAGE;
        (0..count).map(page).collect()
    }

    #[test]
    fn zero_parts_of_replaced_memory_are_own_and_not_copied() {
        let memory = OwnMemory {
            written: vec![5 * PAGE..6 * PAGE, 100 * PAGE..101 * PAGE],
            replaced: std::iter::once(90 * PAGE..200 * PAGE).collect(),
        };
        let plan = OwnPlan::layer(&memory, &LayerMap::plain(LENGTH), LENGTH);
        let own: Vec<_> = plan.own.iter().cloned().collect();
        let copied: Vec<_> = plan.copied.iter().cloned().collect();
        assert_eq!(own, [5 * PAGE..6 * PAGE, 90 * PAGE..200 * PAGE]);
        assert_eq!(copied, memory.written);
    }

    #[test]
    fn scattered_pages_are_joined_until_their_runs_can_be_mapped() {
        let mut memory = OwnMemory {
            written: every(16, 10_000),
            replaced: Vec::new(),
        };
        // A part that is dense enough to be left as it is, once the others are joined.
        memory.written.push(LENGTH - PAGE..LENGTH);
        let parent = LayerMap::plain(LENGTH);
        let plan = OwnPlan::layer(&memory, &parent, LENGTH);
        assert!(parent.child(LENGTH, &plan.own).overlays() <= most_runs(2));
        assert!(
            memory
                .written
                .iter()
                .all(|page| plan.own.contains(&page.start))
        );
        assert_eq!(plan.own, plan.copied);
        let bytes: u64 = plan.own.iter().map(|range| range.end - range.start).sum();
        assert!(bytes < 161_000 * PAGE, "{bytes}");
    }

    #[test]
    fn every_generation_has_runs_left() {
        let mut map = LayerMap::plain(LENGTH);
        for generation in 1..MAX_LAYERS as u64 {
            let shifted = |range: Range<u64>| {
                let shift = 3 * generation * PAGE;
                range.start + shift..range.end + shift
            };
            let memory = OwnMemory {
                written: every(26, 10_000).into_iter().map(shifted).collect(),
                replaced: Vec::new(),
            };
            let plan = OwnPlan::layer(&memory, &map, LENGTH);
            assert!(
                memory
                    .written
                    .iter()
                    .all(|page| plan.own.contains(&page.start))
            );
            map = map.child(LENGTH, &plan.own);
            assert!(map.overlays() <= most_runs(map.layers()), "{generation}");

            // A few more pages are no reason to copy much.
            let few = OwnMemory {
                written: vec![8 * PAGE..9 * PAGE, LENGTH - PAGE..LENGTH],
                replaced: Vec::new(),
            };
            if map.layers() < MAX_LAYERS {
                let plan = OwnPlan::layer(&few, &map, LENGTH);
                assert_eq!(plan.copied.iter().cloned().collect::<Vec<_>>(), few.written);
            }
        }
        assert_eq!(most_runs(MAX_LAYERS), MAX_RUNS);
    }
}
