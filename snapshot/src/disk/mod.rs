//! The disks of a template: files that nobody writes to, in slots of a number each.

mod copy;
mod digest;
mod record;

pub use copy::{copy, copy_ranges};
pub(crate) use digest::digest;
pub use record::{DiskContent, DiskRecord};

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Name of a disk's file in a template's directory.
pub(crate) fn file_name(number: usize) -> String {
    format!("disk-{number}")
}

/// The parts of a disk of `length` bytes in which a file has data. One that does not tell has data
/// everywhere, a block device for one.
fn data_in(file: &File, length: u64) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut position = 0;
    while position < length {
        let start = match seek(file, SeekFrom::Data(position)) {
            Ok(start) => start.min(length),
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) if ranges.is_empty() => {
                return Ok(std::iter::once(0..length).collect());
            }
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        let end = end.min(length);
        if end <= start {
            break;
        }
        ranges.push(start..end);
        position = end;
    }
    Ok(ranges)
}
