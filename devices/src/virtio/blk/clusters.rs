//! Which clusters of a disk are in its overlay.

use std::ops::Range;

/// Bytes of a cluster, the unit that is copied on the first write.
pub const CLUSTER: u64 = 4096;
const BITS: u64 = 64;

/// A bit for each cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Clusters {
    words: Vec<u64>,
}

impl Clusters {
    /// None of the clusters of a disk of `length` bytes.
    pub(super) fn none(length: u64) -> Self {
        let words = length.div_ceil(CLUSTER).div_ceil(BITS);
        Self {
            words: vec![0; usize::try_from(words).unwrap_or(usize::MAX)],
        }
    }

    pub(super) fn has(&self, cluster: u64) -> bool {
        let word = usize::try_from(cluster / BITS).ok();
        let word = word.and_then(|word| self.words.get(word));
        word.is_some_and(|word| word & (1 << (cluster % BITS)) != 0)
    }

    pub(super) fn add(&mut self, clusters: Range<u64>) {
        let mut next = clusters.start;
        while next < clusters.end {
            let end = clusters.end.min((next / BITS + 1) * BITS);
            let ones = u64::MAX >> (BITS - (end - next)) << (next % BITS);
            let word = usize::try_from(next / BITS).ok();
            if let Some(word) = word.and_then(|word| self.words.get_mut(word)) {
                *word |= ones;
            }
            next = end;
        }
    }

    /// Cuts a range of bytes where it goes from the overlay to what is below, or back: the parts,
    /// and whether they are in the overlay.
    pub(super) fn cut(&self, bytes: Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut parts: Vec<(Range<u64>, bool)> = Vec::new();
        let mut start = bytes.start;
        while start < bytes.end {
            let cluster = start / CLUSTER;
            let has = self.has(cluster);
            let end = bytes.end.min((cluster + 1) * CLUSTER);
            match parts.last_mut() {
                Some((part, same)) if *same == has => part.end = end,
                _ => parts.push((start..end, has)),
            }
            start = end;
        }
        parts
    }

    /// The bytes of the overlay's clusters, in order; two ranges never touch.
    pub(super) fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (number, word) in (0..).zip(&self.words) {
            let mut left = *word;
            while left != 0 {
                let first = u64::from(left.trailing_zeros());
                let count = u64::from((!(left >> first)).trailing_zeros()).min(BITS - first);
                left &= !(u64::MAX >> (BITS - count) << first);
                let start = (number * BITS + first) * CLUSTER;
                let end = start + count * CLUSTER;
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
        }
        ranges
    }
}

/// The clusters that a range of bytes touches.
pub(super) fn around(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / CLUSTER..bytes.end.div_ceil(CLUSTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn clusters_are_a_set(added in vec((0..200_u64, 0..150_u64), 0..12)) {
            let mut clusters = Clusters::none(300 * CLUSTER);
            let mut model = vec![false; 300];
            for (start, count) in added {
                let range = start..(start + count).min(300);
                clusters.add(range.clone());
                for cluster in range {
                    model[usize::try_from(cluster).unwrap()] = true;
                }
            }
            for (cluster, has) in (0..).zip(&model) {
                prop_assert_eq!(clusters.has(cluster), *has);
            }
            let parts = clusters.cut(0..300 * CLUSTER);
            let owned: Vec<_> = parts.into_iter().filter(|part| part.1).map(|part| part.0).collect();
            prop_assert_eq!(owned, clusters.ranges());
        }
    }

    #[test]
    fn bytes_are_cut_at_clusters() {
        let mut clusters = Clusters::none(5 * CLUSTER + 512);
        clusters.add(1..2);
        clusters.add(5..6);
        assert_eq!(
            clusters.cut(512..5 * CLUSTER + 512),
            [
                (512..CLUSTER, false),
                (CLUSTER..2 * CLUSTER, true),
                (2 * CLUSTER..5 * CLUSTER, false),
                (5 * CLUSTER..5 * CLUSTER + 512, true),
            ]
        );
        assert_eq!(around(&(4095..4097)), 0..2);
        assert!(!clusters.has(u64::MAX));
    }
}
