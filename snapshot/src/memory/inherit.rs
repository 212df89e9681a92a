//! Filling a new memory file with all of its parent's memory: shared with it where the file system can do
//! that, copied otherwise. Only for a parent whose layers the new template cannot have too.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{copy_file_range, ioctl_ficlone};
use rustix::io::Errno;

use super::extents::{all_of, data_chunks};
use super::layers::MemoryLayers;
use super::seal::punch;
use crate::error::FileError;

/// Whether somebody still wants a copy that is being made; asked again and again.
pub type Wanted<'a> = &'a dyn Fn() -> bool;

/// What is copied before that is asked again, in bytes.
const PIECE: u64 = 16 << 20;

/// Gives `file`, which is empty so far and not shorter, what is in `parent`; holes stay holes.
pub(crate) fn inherit(
    parent: &MemoryLayers,
    file: &File,
    path: &Path,
    wanted: Wanted<'_>,
) -> Result<(), FileError> {
    if parent.count() == 1 && ioctl_ficlone(file, parent.deepest()).is_ok() {
        return Ok(());
    }
    for extent in data_chunks(parent, &all_of(parent))?
        .into_iter()
        .flat_map(|chunk| chunk.data)
    {
        // Shares the data, too, where the file system can.
        copy_range(&parent.file(extent.layer).file, file, extent.range, wanted)
            .map_err(FileError::on("copy into", path))?;
    }
    Ok(())
}

/// Forgets what was inherited in these ranges: they read as zero.
pub(crate) fn clear<'a>(
    file: &File,
    path: &Path,
    ranges: impl Iterator<Item = &'a Range<u64>>,
) -> Result<(), FileError> {
    for range in ranges {
        if !punch(file, path, range)? {
            write_zeros(file, range).map_err(FileError::on("write", path))?;
        }
    }
    Ok(())
}

fn write_zeros(file: &File, range: &Range<u64>) -> io::Result<()> {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut position = range.start;
    while position < range.end {
        let left = usize::try_from(range.end - position).unwrap_or(ZEROS.len());
        let part = &ZEROS[..left.min(ZEROS.len())];
        file.write_all_at(part, position)?;
        position += part.len() as u64;
    }
    Ok(())
}

/// Copies a range of a file to the same place in another, as long as that is wanted.
pub(crate) fn copy_range(
    parent: &File,
    file: &File,
    range: Range<u64>,
    wanted: Wanted<'_>,
) -> io::Result<()> {
    let mut start = range.start;
    while start < range.end {
        if !wanted() {
            return Err(io::Error::other("the copy was given up"));
        }
        let end = range.end.min(start + PIECE);
        copy_piece(parent, file, start..end)?;
        start = end;
    }
    Ok(())
}

fn copy_piece(parent: &File, file: &File, range: Range<u64>) -> io::Result<()> {
    let (mut from, mut to, end) = (range.start, range.start, range.end);
    while from < end {
        let left = usize::try_from(end - from).unwrap_or(usize::MAX);
        match copy_file_range(parent, Some(&mut from), file, Some(&mut to), left) {
            // The parent is shorter than it says; its length was checked when it was opened.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_hand(parent, file, from..end);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// For stores on another file system than the parent's.
fn copy_by_hand(parent: &File, file: &File, range: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut position = range.start;
    while position < range.end {
        let left = usize::try_from(range.end - position).unwrap_or(buffer.len());
        let length = left.min(buffer.len());
        let part = &mut buffer[..length];
        parent.read_exact_at(part, position)?;
        file.write_all_at(part, position)?;
        position += part.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    fn byte_at(file: &File, offset: u64) -> u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    }

    #[test]
    fn a_copy_ends_when_nobody_wants_it() {
        let parent = tempfile::tempfile().unwrap();
        parent.set_len(64 * MIB).unwrap();
        parent.write_all_at(&[1; 4096], 0).unwrap();
        parent.write_all_at(&[1; 4096], 40 * MIB).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * MIB).unwrap();
        let asked = std::cell::Cell::new(0);
        let wanted = || asked.replace(asked.get() + 1) < 2;
        let error = copy_range(&parent, &file, 0..64 * MIB, &wanted).unwrap_err();
        assert_eq!(error.to_string(), "the copy was given up");
        assert_eq!((byte_at(&file, 0), byte_at(&file, 40 * MIB)), (1, 0));
    }

    #[test]
    fn content_is_inherited_and_holes_stay() {
        let parent = tempfile::tempfile().unwrap();
        parent.set_len(64 * MIB).unwrap();
        for (offset, byte) in [(0, 1), (5 * MIB + 4096, 2), (40 * MIB, 3)] {
            parent.write_all_at(&[byte; 4096], offset).unwrap();
        }
        let parent = MemoryLayers::plain(parent, Path::new("parent")).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(96 * MIB).unwrap();
        inherit(&parent, &file, Path::new("memory"), &|| true).unwrap();
        let bytes = [0, 5 * MIB + 4096, 40 * MIB].map(|offset| byte_at(&file, offset));
        assert_eq!(bytes, [1, 2, 3]);
        assert_eq!(file.metadata().unwrap().len(), 96 * MIB);
        assert!(file.metadata().unwrap().blocks() * 512 < MIB);
    }

    #[test]
    fn cleared_ranges_are_zero_and_the_rest_stays() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 3 << 20], 0).unwrap();
        let clear_by = [
            |file: &File, range| clear(file, Path::new("memory"), [range].iter()).unwrap(),
            |file: &File, range| write_zeros(file, &range).unwrap(),
        ];
        for (clear, start) in clear_by.into_iter().zip([0, 2 * MIB]) {
            clear(&file, start + 4096..start + 200 * 1024);
            let inside = [4096, 200 * 1024 - 1].map(|offset| byte_at(&file, start + offset));
            let outside = [4095, 200 * 1024].map(|offset| byte_at(&file, start + offset));
            assert_eq!((inside, outside), ([0, 0], [7, 7]));
        }
    }

    #[test]
    fn copy_by_hand_is_the_same() {
        let parent = tempfile::tempfile().unwrap();
        parent.write_all_at(&[7; 3 << 20], 100).unwrap();
        let file = tempfile::tempfile().unwrap();
        copy_by_hand(&parent, &file, 100..(3 << 20) + 100).unwrap();
        let mut copied = vec![0; 3 << 20];
        file.read_exact_at(&mut copied, 100).unwrap();
        assert!(copied.iter().all(|byte| *byte == 7));
    }
}
