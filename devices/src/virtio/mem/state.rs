//! The saved state of a memory device: plain, untrusted data.

use super::plug_map::{PlugMap, SizeError};
use super::region::{Region, RegionError};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use vm_memory::GuestAddress;

/// Version of [`MemState`] in a state file. Raise it with any change of the structs here.
pub const MEM_STATE_VERSION: u16 = 1;

/// What a clone has to know: [`PlugMap`] in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemState {
    /// Guest physical address of the region.
    pub region_start: u64,
    /// Length of the region in bytes.
    pub region_length: u64,
    /// Requested size in bytes.
    pub requested: u64,
    /// Usable size in bytes.
    pub usable: u64,
    /// The plugged blocks, in order; two runs never touch.
    pub plugged: Vec<BlockRun>,
}

/// Consecutive plugged blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRun {
    /// Number of the first block, counted from the start of the region.
    pub first: u32,
    /// How many blocks, at least one.
    pub count: u32,
}

/// Why a saved state is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemStateError {
    /// There cannot be such a region.
    #[error("Saved memory device has an impossible region")]
    Region(#[source] RegionError),
    /// The requested size cannot have been requested.
    #[error("Saved memory device has an impossible requested size")]
    Requested(#[source] SizeError),
    /// The usable size is too small for what was requested, or no size the device would choose.
    #[error("Saved memory device has an impossible usable size of {found} bytes")]
    Usable {
        /// Bytes.
        found: u64,
    },
    /// A run is empty, not apart from the one before it, or not usable.
    #[error("Saved memory device has an impossible run {index} of plugged blocks")]
    Run {
        /// Number of the run, from 0.
        index: usize,
    },
}

impl BlockRun {
    /// The blocks, when there are any and their numbers lie within `allowed`.
    fn range(self, allowed: &Range<u32>) -> Option<Range<u32>> {
        let end = self.first.checked_add(self.count)?;
        let fits = self.count > 0 && self.first >= allowed.start && end <= allowed.end;
        fits.then_some(self.first..end)
    }
}

impl From<&PlugMap> for MemState {
    fn from(map: &PlugMap) -> Self {
        let runs = map.runs().map(|run| BlockRun {
            first: run.start,
            count: run.end - run.start,
        });
        Self {
            region_start: map.region().start().0,
            region_length: map.region().length(),
            requested: map.requested_size(),
            usable: map.usable_size(),
            plugged: runs.collect(),
        }
    }
}

impl TryFrom<&MemState> for PlugMap {
    type Error = MemStateError;

    /// Does what may have led to the state: so much was requested once as is usable now, the guest
    /// plugged its blocks, and then the request was lowered to what it is.
    fn try_from(state: &MemState) -> Result<Self, MemStateError> {
        let unusable = MemStateError::Usable {
            found: state.usable,
        };
        let start = GuestAddress(state.region_start);
        let region = Region::new(start, state.region_length).map_err(MemStateError::Region)?;
        let mut map = Self::new(region);
        if map.request(state.usable).is_err() || map.usable_size() != state.usable {
            return Err(unusable);
        }
        let mut allowed = map.usable();
        for (index, run) in state.plugged.iter().enumerate() {
            let blocks = run.range(&allowed).ok_or(MemStateError::Run { index })?;
            map.plug(&blocks);
            allowed.start = blocks.end + 1;
        }
        map.request(state.requested)
            .map_err(MemStateError::Requested)?;
        if map.usable_size() != state.usable {
            return Err(unusable);
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 512 MiB, of which 256 are usable, 100 requested, and 4 + 2 MiB and 64 MiB plugged.
    fn state() -> MemState {
        let run = |first, count| BlockRun { first, count };
        MemState {
            region_start: 4096 * MIB,
            region_length: 512 * MIB,
            requested: 100 * MIB,
            usable: 256 * MIB,
            plugged: vec![run(0, 2), run(3, 1), run(96, 32)],
        }
    }

    fn refusal(change: fn(&mut MemState)) -> MemStateError {
        let mut changed = state();
        change(&mut changed);
        PlugMap::try_from(&changed).unwrap_err()
    }

    #[test]
    fn state_comes_back() {
        let map = PlugMap::try_from(&state()).unwrap();
        assert_eq!(map.plugged_size(), 70 * MIB);
        assert_eq!(MemState::from(&map), state());
        let shrinking = MemState {
            requested: 2 * MIB,
            ..state()
        };
        let map = PlugMap::try_from(&shrinking).unwrap();
        assert_eq!(MemState::from(&map), shrinking);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for change in [
            (|state| state.usable += 2 * MIB) as fn(&mut MemState),
            |state| state.usable = 128 * MIB + 1,
            |state| state.usable = 640 * MIB,
            |state| state.usable = u64::MAX,
            |state| state.requested = 258 * MIB,
        ] {
            assert!(matches!(refusal(change), MemStateError::Usable { .. }));
        }
        for change in [
            (|state| state.requested += 1) as fn(&mut MemState),
            |state| state.requested = 514 * MIB,
            |state| state.requested = u64::MAX,
        ] {
            assert!(matches!(refusal(change), MemStateError::Requested(_)));
        }
        for change in [
            (|state| state.region_length = u64::MAX - (2 * MIB - 1)) as fn(&mut MemState),
            |state| state.region_length = 0,
            |state| state.region_start = 1,
        ] {
            assert!(matches!(refusal(change), MemStateError::Region(_)));
        }
    }

    #[test]
    fn impossible_runs_are_refused() {
        let run = |change, index| assert_eq!(refusal(change), MemStateError::Run { index });
        run(|state| state.plugged[0].count = 0, 0);
        run(|state| state.plugged[0].count = 3, 1);
        run(|state| state.plugged[1].first = 1, 1);
        run(|state| state.plugged.swap(1, 2), 2);
        run(|state| state.plugged[2].count = 33, 2);
        run(|state| state.plugged[2].first = u32::MAX, 2);
        run(|state| state.plugged[2].count = u32::MAX, 2);
        run(|state| state.plugged.push(state.plugged[2]), 3);
    }
}
