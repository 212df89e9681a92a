//! The part of the guest's address space that a memory device manages, and its unit.

use vm_memory::GuestAddress;

/// Size and alignment of a block, in bytes: what the guest plugs and unplugs at once.
pub const BLOCK_SIZE: u64 = 2 << 20;
/// Largest region, in bytes: 64 TiB, all that a guest with four levels of page tables can address.
pub const LARGEST_REGION: u64 = 1 << 46;

/// Why there cannot be such a region.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Start or length is not a multiple of [`BLOCK_SIZE`].
    #[error("Hot-plug region at {start:#x}, {length} bytes long, is not made of 2 MiB blocks")]
    Unaligned {
        /// Guest physical address.
        start: u64,
        /// Bytes.
        length: u64,
    },
    /// The region has no block, more than [`LARGEST_REGION`], or goes beyond all addresses.
    #[error("Hot-plug region at {start:#x} cannot be {length} bytes long")]
    Length {
        /// Guest physical address.
        start: u64,
        /// Bytes.
        length: u64,
    },
}

/// A range of guest physical addresses made of at least one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    start: u64,
    blocks: u32,
}

impl Region {
    /// The region of `length` bytes at `start`, both multiples of [`BLOCK_SIZE`].
    ///
    /// Linux adds memory in units of 128 MiB and more that are aligned to their size, so a start
    /// that is not aligned like that wastes the region's first part.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn new(start: GuestAddress, length: u64) -> Result<Self, RegionError> {
        let start = start.0;
        if !start.is_multiple_of(BLOCK_SIZE) || !length.is_multiple_of(BLOCK_SIZE) {
            return Err(RegionError::Unaligned { start, length });
        }
        let fits = length <= LARGEST_REGION && start.checked_add(length).is_some();
        let blocks = u32::try_from(length / BLOCK_SIZE).ok();
        match blocks.filter(|blocks| *blocks > 0 && fits) {
            Some(blocks) => Ok(Self { start, blocks }),
            None => Err(RegionError::Length { start, length }),
        }
    }

    /// First guest physical address.
    #[must_use]
    pub fn start(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        bytes(self.blocks)
    }

    /// Length in blocks.
    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }
}

/// The size of `blocks` blocks, in bytes.
pub(super) fn bytes(blocks: u32) -> u64 {
    u64::from(blocks) * BLOCK_SIZE
}

/// How many blocks `bytes` bytes are, when they are whole blocks.
pub(super) fn whole_blocks(bytes: u64) -> Option<u32> {
    let blocks = u32::try_from(bytes / BLOCK_SIZE).ok();
    blocks.filter(|_| bytes.is_multiple_of(BLOCK_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_is_made_of_blocks_within_the_address_space() {
        let region = |start, length| Region::new(GuestAddress(start), length);
        let good = region(4 << 30, 6 << 20).unwrap();
        assert_eq!((good.start().0, good.length()), (4 << 30, 6 << 20));
        for (start, length) in [(1 << 20, 2 << 20), (2 << 20, 1 << 20), (1, 1)] {
            let error = region(start, length).unwrap_err();
            assert_eq!(error, RegionError::Unaligned { start, length });
        }
        let last = u64::MAX - BLOCK_SIZE + 1;
        for (start, length) in [
            (0, 0),
            (0, LARGEST_REGION + BLOCK_SIZE),
            (0, last),
            (last, BLOCK_SIZE),
        ] {
            let error = region(start, length).unwrap_err();
            assert_eq!(error, RegionError::Length { start, length });
        }
        assert!(region(0, LARGEST_REGION).is_ok());
    }
}
