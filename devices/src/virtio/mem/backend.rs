//! What a memory device needs from the one who owns the memory.

use std::fmt::Debug;
use std::io;

/// The memory behind a device's region.
///
/// There is no call to add memory: the owner has put memory behind the whole usable part before it
/// raises the requested size.
pub trait RegionMemory: Send + Debug {
    /// Gives the memory behind `length` bytes at `offset` of the region back to the host; it reads
    /// as zero afterwards. Both are multiples of the block size, and all of it is, or once was,
    /// usable. Some of it may never have been plugged.
    ///
    /// # Errors
    /// Some of the memory is left. The guest is told to try again and keeps its blocks; what they
    /// hold is of no interest to it any more.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;
}
