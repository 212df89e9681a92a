//! The state file: a machine's state as named, versioned sections behind a plain header.
//!
//! Everything up to the section bodies has a fixed layout, little-endian, and is checked before
//! anything is decoded; the checksum is tested before the table is believed.
//!
//! | Offset | Bytes | What |
//! |---|---|---|
//! | 0 | 8 | `MVMSTATE` |
//! | 8 | 2 | format version, [`FORMAT`] |
//! | 10 | 2 | architecture, [`Arch`] |
//! | 12 | 4 | number of sections |
//! | 16 | 8 | length of the whole file |
//! | 24 | 56 each | table: name (32, zero padded), version (2), zero (6), offset (8), length (8) |
//! | then | | the bodies, in the order of the table, without gaps; each encoded with postcard |
//! | end - 8 | 8 | XXH3 of all bytes before |
//!
//! A section's version belongs to its owner: it goes up when the shape of the body changes.

mod arch;
mod error;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use arch::Arch;
pub use error::{StateError, WriteError};
pub use reader::StateFile;
pub use writer::StateWriter;

/// The newest format of the header and table; also the oldest that is read.
pub const FORMAT: u16 = 1;

/// The most bytes a state file may have: hundreds of vCPUs need less.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// The most bytes a section's name may have.
pub const MAX_SECTION_NAME: usize = 32;

const MAGIC: [u8; 8] = *b"MVMSTATE";
const HEADER_BYTES: usize = 24;
const ENTRY_BYTES: usize = 56;
const CHECKSUM_BYTES: usize = 8;

/// Lower-case letters, digits and `-`, at most [`MAX_SECTION_NAME`] of them.
fn is_section_name(name: &[u8]) -> bool {
    (1..=MAX_SECTION_NAME).contains(&name.len())
        && name
            .iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}
