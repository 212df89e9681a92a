//! The checksum of a disk. Blocks of zeroes do not count, so it is the same wherever the holes are.

use std::fs::File;
use std::hash::Hasher;
use std::os::unix::fs::FileExt;
use std::path::Path;

use twox_hash::XxHash3_64;

use super::data_in;
use crate::checksum::Checksum;
use crate::error::FileError;

/// Bytes of a block.
const BLOCK: u64 = 64 << 10;

/// The checksum of a disk of `length` bytes; all data is read.
pub(crate) fn digest(file: &File, path: &Path, length: u64) -> Result<Checksum, FileError> {
    let mut hasher = XxHash3_64::with_seed(0);
    let mut buffer = vec![0; usize::try_from(BLOCK).unwrap_or_default()];
    let mut next = 0;
    for range in data_in(file, length).map_err(FileError::on("find data in", path))? {
        let mut start = (range.start / BLOCK * BLOCK).max(next);
        while start < range.end {
            let size = usize::try_from(BLOCK.min(length - start)).unwrap_or(buffer.len());
            let block = &mut buffer[..size];
            file.read_exact_at(block, start)
                .map_err(FileError::on("read", path))?;
            if block.iter().any(|byte| *byte != 0) {
                hasher.write(&start.to_le_bytes());
                hasher.write(block);
            }
            start += BLOCK;
        }
        next = start;
    }
    Ok(Checksum::from_raw(hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_do_not_count_and_every_byte_does() {
        let path = Path::new("disk");
        let of = |file: &File| digest(file, path, 1 << 20).unwrap();
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(1 << 20).unwrap();
        let empty = of(&sparse);
        sparse.write_all_at(b"data", 200_000).unwrap();
        let mut bytes = vec![0; 1 << 20];
        bytes[200_000..200_004].copy_from_slice(b"data");
        let dense = tempfile::tempfile().unwrap();
        dense.write_all_at(&bytes, 0).unwrap();
        assert_eq!(of(&sparse), of(&dense));
        assert_ne!(of(&sparse), empty);
        dense.write_all_at(b"x", (1 << 20) - 1).unwrap();
        assert_ne!(of(&sparse), of(&dense));
    }
}
