//! The saved state of a disk: plain, untrusted data.

use super::image::SECTOR;
use serde::{Deserialize, Serialize};

/// Version of [`BlkState`] in a state file. Raise it with any change of the struct.
pub const BLK_STATE_VERSION: u16 = 1;

/// What a clone has to know. The content is in a file of the template's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkState {
    /// Length in bytes; 0 when the slot is empty.
    pub length: u64,
    /// The driver was told that it cannot write.
    pub read_only: bool,
}

/// Why a saved state is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlkStateError {
    /// No disk has such a length.
    #[error("Saved disk has {found} bytes, expected a multiple of {SECTOR}")]
    Length {
        /// Bytes.
        found: u64,
    },
    /// The disk that is given to the clone is another one.
    #[error("Disk has {found} bytes, the template's guest knows it with {expected}")]
    OtherLength {
        /// Bytes of the image.
        found: u64,
        /// Bytes of the state.
        expected: u64,
    },
}

impl BlkState {
    /// Checks that an image of `length` bytes can be behind this state: the same disk, or anything
    /// in a slot that was empty.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self, length: u64) -> Result<(), BlkStateError> {
        if !self.length.is_multiple_of(SECTOR) {
            return Err(BlkStateError::Length { found: self.length });
        }
        if self.length != 0 && self.length != length {
            return Err(BlkStateError::OtherLength {
                found: length,
                expected: self.length,
            });
        }
        Ok(())
    }
}
