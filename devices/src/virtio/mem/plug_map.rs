//! What is plugged, and what should be: the numbers that driver and device agree on.

use super::blocks::{Blocks, Occupancy};
use super::region::{Region, bytes, whole_blocks};
use super::request::Claim;
use std::ops::Range;

/// Blocks in Linux's smallest unit of hot-added memory, 128 MiB.
const LINUX_UNIT: u32 = 64;

/// Why a size cannot be requested.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a multiple of [`BLOCK_SIZE`](super::BLOCK_SIZE).
    #[error("Hot-plugged memory of {found} bytes is not a multiple of 2 MiB")]
    Unaligned {
        /// Bytes asked for.
        found: u64,
    },
    /// More than the region has.
    #[error("Hot-plugged memory of {found} bytes, at most {limit} are possible")]
    TooLarge {
        /// Bytes asked for.
        found: u64,
        /// Length of the region in bytes.
        limit: u64,
    },
}

/// A range of plugged memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluggedRange {
    /// Distance from the start of the region, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// The state of a memory device's region.
///
/// The owner sets how much memory the guest should have (the requested size). The guest plugs and
/// unplugs blocks to get there, anywhere in the usable part of the region, which starts where the
/// region starts. The usable part grows with the requested size; only the guest's request to unplug
/// everything makes it smaller, as the specification demands (virtio 1.2, section 5.15.4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlugMap {
    region: Region,
    /// Blocks.
    requested: u32,
    /// Blocks.
    usable: u32,
    blocks: Blocks,
}

impl PlugMap {
    /// Nothing is plugged or requested.
    #[must_use]
    pub fn new(region: Region) -> Self {
        Self {
            region,
            requested: 0,
            usable: 0,
            blocks: Blocks::new(region.blocks()),
        }
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> Region {
        self.region
    }

    /// How much memory the guest should have plugged, in bytes.
    #[must_use]
    pub fn requested_size(&self) -> u64 {
        bytes(self.requested)
    }

    /// How much of the region, from its start, the guest may plug blocks of, in bytes.
    #[must_use]
    pub fn usable_size(&self) -> u64 {
        bytes(self.usable)
    }

    /// How much memory the guest has plugged, in bytes; more than requested while it unplugs.
    #[must_use]
    pub fn plugged_size(&self) -> u64 {
        bytes(self.blocks.plugged())
    }

    /// The plugged memory, in order of addresses; two ranges never touch.
    pub fn plugged_ranges(&self) -> impl Iterator<Item = PluggedRange> + '_ {
        self.runs().map(|run| PluggedRange {
            offset: bytes(run.start),
            length: bytes(run.end - run.start),
        })
    }

    /// The usable size that goes with a requested size of `size` bytes, in bytes.
    ///
    /// Behind so much of the region has to be memory before that size is requested.
    ///
    /// # Errors
    /// The size cannot be requested.
    pub fn usable_size_for(&self, size: u64) -> Result<u64, SizeError> {
        let requested = self.requestable(size)?;
        Ok(bytes(self.usable.max(self.usable_for(requested))))
    }

    /// Asks for `size` bytes of plugged memory.
    pub(super) fn request(&mut self, size: u64) -> Result<(), SizeError> {
        self.requested = self.requestable(size)?;
        self.usable = self.usable.max(self.usable_for(self.requested));
        Ok(())
    }

    /// The blocks that the driver means, when they are usable ones.
    pub(super) fn range(&self, claim: Claim) -> Option<Range<u32>> {
        let offset = claim.address.checked_sub(self.region.start().0)?;
        let start = whole_blocks(offset)?;
        let end = start.checked_add(claim.blocks.into())?;
        (start < end && end <= self.usable).then_some(start..end)
    }

    /// The blocks that the driver means, when they are usable ones and all in one state.
    pub(super) fn range_that_is(&self, claim: Claim, state: Occupancy) -> Option<Range<u32>> {
        let range = self.range(claim);
        range.filter(|range| self.occupancy(range) == state)
    }

    /// The plugged blocks, in order; two ranges never touch.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.blocks.runs()
    }

    /// The usable part of the region.
    pub(super) fn usable(&self) -> Range<u32> {
        0..self.usable
    }

    pub(super) fn occupancy(&self, range: &Range<u32>) -> Occupancy {
        self.blocks.occupancy(range)
    }

    /// Plugs unplugged blocks; false when more would be plugged than requested, then none is.
    pub(super) fn plug(&mut self, range: &Range<u32>) -> bool {
        let fits = self.blocks.plugged() + (range.end - range.start) <= self.requested;
        if fits {
            self.blocks.plug(range);
        }
        fits
    }

    pub(super) fn unplug(&mut self, range: &Range<u32>) {
        self.blocks.unplug(range);
    }

    /// Unplugs everything; the usable part becomes what the requested size needs.
    pub(super) fn unplug_all(&mut self) {
        self.blocks = Blocks::new(self.region.blocks());
        self.usable = self.usable_for(self.requested);
    }

    /// Linux uses whole units only, so whole ones must be usable.
    fn usable_for(&self, requested: u32) -> u32 {
        let units = requested.next_multiple_of(LINUX_UNIT);
        units.min(self.region.blocks())
    }

    fn requestable(&self, size: u64) -> Result<u32, SizeError> {
        let limit = self.region.length();
        if size > limit {
            return Err(SizeError::TooLarge { found: size, limit });
        }
        whole_blocks(size).ok_or(SizeError::Unaligned { found: size })
    }
}
