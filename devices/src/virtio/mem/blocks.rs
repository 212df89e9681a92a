//! One bit for each block of a region: is it plugged?

use std::ops::Range;

/// Whether the blocks of a range are plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occupancy {
    Plugged,
    Unplugged,
    Mixed,
}

/// The plugged blocks of a region. Ranges given to it must lie within the region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    words: Vec<u64>,
    total: u32,
    plugged: u32,
}

impl Blocks {
    /// `total` blocks, none of them plugged.
    pub(super) fn new(total: u32) -> Self {
        Self {
            words: vec![0; total.div_ceil(u64::BITS) as usize],
            total,
            plugged: 0,
        }
    }

    /// How many blocks are plugged.
    pub(super) fn plugged(&self) -> u32 {
        self.plugged
    }

    pub(super) fn occupancy(&self, range: &Range<u32>) -> Occupancy {
        match self.plugged_in(range) {
            0 => Occupancy::Unplugged,
            plugged if plugged == range.end - range.start => Occupancy::Plugged,
            _ => Occupancy::Mixed,
        }
    }

    pub(super) fn plug(&mut self, range: &Range<u32>) {
        self.plugged += range.end - range.start - self.plugged_in(range);
        for (word, mask) in masks(range) {
            self.words[word] |= mask;
        }
    }

    pub(super) fn unplug(&mut self, range: &Range<u32>) {
        self.plugged -= self.plugged_in(range);
        for (word, mask) in masks(range) {
            self.words[word] &= !mask;
        }
    }

    /// The longest ranges of plugged blocks, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        let mut end = 0;
        std::iter::from_fn(move || {
            let start = self.next(end, |word| word);
            end = self.next(start, |word| !word);
            (start < end).then_some(start..end)
        })
    }

    fn plugged_in(&self, range: &Range<u32>) -> u32 {
        let words = masks(range).map(|(word, mask)| self.words[word] & mask);
        words.map(u64::count_ones).sum()
    }

    /// The first block from `from` on whose bit is set in the words as seen through `view`.
    fn next(&self, from: u32, view: fn(u64) -> u64) -> u32 {
        let mut block = from;
        while block < self.total {
            let rest = view(self.words[(block / u64::BITS) as usize]) >> (block % u64::BITS);
            if rest != 0 {
                return self.total.min(block + rest.trailing_zeros());
            }
            block = (block / u64::BITS + 1) * u64::BITS;
        }
        self.total
    }
}

/// The words that hold the bits of `range`, with a mask of these bits.
fn masks(range: &Range<u32>) -> impl Iterator<Item = (usize, u64)> + use<> {
    let Range { start, end } = *range;
    (start / u64::BITS..end.div_ceil(u64::BITS)).map(move |word| {
        let base = word * u64::BITS;
        let bits_to = |block: u32| lowest_bits(block.saturating_sub(base).min(u64::BITS));
        (word as usize, bits_to(end) & !bits_to(start))
    })
}

fn lowest_bits(count: u32) -> u64 {
    !u64::MAX.checked_shl(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(blocks: &Blocks) -> Vec<Range<u32>> {
        blocks.runs().collect()
    }

    #[test]
    fn ranges_across_words_are_plugged_and_unplugged() {
        let mut blocks = Blocks::new(200);
        blocks.plug(&(60..130));
        blocks.plug(&(199..200));
        assert_eq!(blocks.plugged(), 71);
        assert_eq!(runs(&blocks), [60..130, 199..200]);
        blocks.unplug(&(64..128));
        assert_eq!(runs(&blocks), [60..64, 128..130, 199..200]);
        blocks.plug(&(0..199));
        blocks.unplug(&(100..101));
        assert_eq!(blocks.plugged(), 199);
        assert_eq!(runs(&blocks), [0..100, 101..200]);
        blocks.unplug(&(0..200));
        assert_eq!(blocks, Blocks::new(200));
        assert_eq!(runs(&blocks), []);
    }

    #[test]
    fn occupancy_is_that_of_the_range_alone() {
        let mut blocks = Blocks::new(256);
        blocks.plug(&(64..128));
        for (range, expected) in [
            (0..64, Occupancy::Unplugged),
            (64..128, Occupancy::Plugged),
            (127..128, Occupancy::Plugged),
            (63..128, Occupancy::Mixed),
            (64..129, Occupancy::Mixed),
            (0..256, Occupancy::Mixed),
            (128..256, Occupancy::Unplugged),
        ] {
            assert_eq!(blocks.occupancy(&range), expected, "{range:?}");
        }
    }

    #[test]
    fn last_word_may_be_part_of_a_word() {
        for total in [1, 63, 64, 65] {
            let mut blocks = Blocks::new(total);
            blocks.plug(&(0..total));
            assert_eq!(
                (blocks.runs().next(), runs(&blocks).len()),
                (Some(0..total), 1)
            );
        }
    }
}
