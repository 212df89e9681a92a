//! What is in one file, in as many bytes as its header has promised.

use std::fs::File;
use std::io::{self, Read, Write};

/// Read and written at a time. Files up to this size are read before their header is written, so that
/// those of /proc and /sys, whose sizes are no sizes, are copied as well.
const BLOCK_BYTES: usize = 256 * 1024;
/// Contents are followed by zeros up to a multiple of this.
const RECORD_BYTES: usize = 512;

/// A file's contents, with their length fixed.
pub struct Contents<'a> {
    file: File,
    /// What has been read already.
    head: &'a [u8],
    length: u64,
}

/// Scratch space for [`Contents`].
pub struct Block(Vec<u8>);

impl Block {
    pub fn new() -> Self {
        Self(vec![0; BLOCK_BYTES])
    }
}

impl<'a> Contents<'a> {
    /// Of a file that is said to have `size` bytes.
    pub fn of(mut file: File, size: u64, block: &'a mut Block) -> io::Result<Self> {
        let mut filled = 0;
        // A larger file is at least that long most likely, and its length is what it is said to be.
        while let Some(room) = block.0.get_mut(filled..).filter(|room| !room.is_empty()) {
            match file.read(room) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let head = block.0.get(..filled).unwrap_or_default();
        let whole = filled < BLOCK_BYTES;
        let length = if whole {
            filled as u64
        } else {
            size.max(filled as u64)
        };
        Ok(Self { file, head, length })
    }

    /// How many bytes are going to be written.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Writes them, with zeros for what the file has lost meanwhile: false when that is so.
    pub fn write(mut self, out: &mut impl Write) -> Result<bool, Failure> {
        out.write_all(self.head).map_err(Failure::Write)?;
        let mut left = self.length - self.head.len() as u64;
        let mut block = Vec::new();
        if left > 0 {
            block.resize(BLOCK_BYTES, 0);
        }
        let mut complete = true;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            let room = block.get_mut(..most).unwrap_or_default();
            let count = match self.file.read(room) {
                Ok(0) => {
                    complete = false;
                    room.fill(0);
                    room.len()
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Read(error)),
            };
            let bytes = block.get(..count).unwrap_or_default();
            out.write_all(bytes).map_err(Failure::Write)?;
            left -= count as u64;
        }
        let rest = usize::try_from(self.length.next_multiple_of(RECORD_BYTES as u64) - self.length);
        let zeros = [0; RECORD_BYTES];
        let padding = zeros.get(..rest.unwrap_or_default()).unwrap_or_default();
        out.write_all(padding).map_err(Failure::Write)?;
        Ok(complete)
    }
}

/// Which side failed.
pub enum Failure {
    /// The file.
    Read(io::Error),
    /// The stream.
    Write(io::Error),
}
