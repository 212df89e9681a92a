//! Filling a file with the content of a disk: shared where the file system can do that.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone};

use super::data_in;
use crate::memory::{Wanted, copy_range};

/// Gives `to`, which has the disk's length and is empty, what is on a disk; holes stay holes.
///
/// # Errors
/// The file cannot be written, for example because the disk is full, or nobody wants the copy any more.
pub fn copy(from: &File, to: &File, length: u64, wanted: Wanted<'_>) -> io::Result<()> {
    let is_regular = from.metadata().is_ok_and(|from| from.is_file());
    if is_regular && ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    for range in data_in(from, length)? {
        copy_range(from, to, range, wanted)?;
    }
    Ok(())
}

/// Gives `to` what is in some ranges of `from`, holes included.
///
/// # Errors
/// The file cannot be written, for example because the disk is full, or nobody wants the copy any more.
pub fn copy_ranges(
    from: &File,
    to: &File,
    ranges: &[Range<u64>],
    wanted: Wanted<'_>,
) -> io::Result<()> {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for range in ranges {
        // Where it cannot be a hole, the copy writes zeroes.
        let data = match fallocate(to, punch, range.start, range.end - range.start) {
            Ok(()) => data_within(from, range),
            Err(_) => vec![range.clone()],
        };
        for part in data {
            copy_range(from, to, part, wanted)?;
        }
    }
    Ok(())
}

/// The parts of a range with data; all of it when the file does not tell.
fn data_within(file: &File, range: &Range<u64>) -> Vec<Range<u64>> {
    let Ok(all) = data_in(file, range.end) else {
        return vec![range.clone()];
    };
    let cut = |part: Range<u64>| part.start.max(range.start)..part.end.min(range.end);
    let parts = all.into_iter().map(cut);
    parts.filter(|part| part.start < part.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const LENGTH: u64 = 1 << 20;

    fn file(data: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH).unwrap();
        for (at, byte) in data {
            file.write_all_at(&[*byte; 4096], *at).unwrap();
        }
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(LENGTH).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn whole_disk_is_copied() {
        let from = file(&[(0, 1), (500_000, 2), (LENGTH - 4096, 3)]);
        let to = file(&[]);
        copy(&from, &to, LENGTH, &|| true).unwrap();
        assert_eq!(content(&from), content(&to));
    }

    #[test]
    fn what_became_zero_hides_what_was_there() {
        let base = file(&[(0, 1), (8192, 1), (16384, 1)]);
        let own = file(&[(0, 7)]);
        copy_ranges(&own, &base, &[0..4096, 8192..12288], &|| true).unwrap();
        assert_eq!(content(&base), content(&file(&[(0, 7), (16384, 1)])));
    }
}
