//! The pages that a clone touches until it is ready, in the file `working-set` of a template. The first clone
//! tells; later ones have them before they run, instead of a fault for each.
//!
//! The file is a hint: without it, or with a damaged one, clones are as right and a little slower. So it is no
//! part of the manifest, and whoever cannot write it goes without.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, OFlags};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::state::{StateError, StateFile, StateWriter};

/// Its name in a template's directory.
pub(super) const FILE_NAME: &str = "working-set";

const SECTION: &str = "working-set";
const VERSION: u16 = 1;
/// The section of files from before clones told what they read. Its content is [`WorkingSet::written`].
const WRITTEN_SECTION: &str = "written";
/// More than that is no working set: a clone would copy for nothing what most others never write.
const MOST_WRITTEN: u64 = 32 << 20;
/// A clone that touches more than that needs more time for it than what it saves by having it at once.
const MOST_TOUCHED: u64 = 256 << 20;
/// The longest file, in bytes: a run of one page takes less than twelve.
const LONGEST_FILE: u64 = 128 << 10;

/// Ranges of a guest's memory, as offsets in its memory file: ascending, and apart from each other.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct WorkingSet {
    written: Vec<Range<u64>>,
    touched: Vec<Range<u64>>,
}

impl WorkingSet {
    /// Of these ranges; without those of a kind that are too much to be dealt with for every clone.
    #[must_use]
    pub fn new(written: Vec<Range<u64>>, touched: Vec<Range<u64>>) -> Self {
        Self {
            written: no_more_than(MOST_WRITTEN, written),
            touched: no_more_than(MOST_TOUCHED, touched),
        }
    }

    /// The pages that a clone writes.
    #[must_use]
    pub fn written(&self) -> &[Range<u64>] {
        &self.written
    }

    /// The pages that a clone touches; those that it writes are among them.
    #[must_use]
    pub fn touched(&self) -> &[Range<u64>] {
        &self.touched
    }

    pub(super) fn read(dir: BorrowedFd<'_>, path: &Path) -> Result<Self, StateError> {
        let file_path = path.join(FILE_NAME);
        let bytes = files::read_regular_at(dir, Path::new(FILE_NAME), &file_path, LONGEST_FILE)?;
        let file = StateFile::parse(bytes, &file_path)?;
        let set: Self = file.section(SECTION, VERSION..=VERSION).or_else(|error| {
            let touched = Vec::new();
            let written = file.section(WRITTEN_SECTION, VERSION..=VERSION);
            written.map_or(Err(error), |written| Ok(Self { written, touched }))
        })?;
        Ok(Self::new(ascending(set.written), ascending(set.touched)))
    }

    /// Writes the file, unless there is one. It appears as a whole or not at all.
    pub(super) fn write(&self, dir: BorrowedFd<'_>) -> io::Result<()> {
        let mut writer = StateWriter::new();
        writer
            .section(SECTION, VERSION, self)
            .map_err(io::Error::other)?;
        let bytes = writer.finish();
        if bytes.len() as u64 > LONGEST_FILE {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(dir, ".", flags, files::MODE_PUBLISHED)?);
        file.write_all(&bytes)?;
        file.sync_all()?;
        let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = rustix::fs::linkat(CWD, nameless, dir, FILE_NAME, AtFlags::SYMLINK_FOLLOW);
        match linked {
            // Another clone was as fast.
            Err(rustix::io::Errno::EXIST) => Ok(()),
            linked => Ok(linked?),
        }
    }
}

fn no_more_than(most: u64, runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let bytes: u64 = runs.iter().map(|run| run.end - run.start).sum();
    if bytes > most { Vec::new() } else { runs }
}

/// What is out of order or empty is left out.
fn ascending(mut runs: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut end = 0;
    runs.retain(|run| {
        let fits = run.start >= end && run.start < run.end;
        if fits {
            end = run.end;
        }
        fits
    });
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd, OwnedFd};

    fn directory() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = files::open_directory(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn it_is_read_as_it_was_written_and_the_first_one_stays() {
        let (dir, fd) = directory();
        let set = WorkingSet::new(vec![0..4096, 12288..20480], vec![0..8192, 12288..20480]);
        set.write(fd.as_fd()).unwrap();
        WorkingSet::new(vec![4096..8192, 9..10], Vec::new())
            .write(fd.as_fd())
            .unwrap();
        assert_eq!(WorkingSet::read(fd.as_fd(), dir.path()).unwrap(), set);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_or_damaged_file_is_an_error_that_says_so() {
        let (dir, fd) = directory();
        assert!(WorkingSet::read(fd.as_fd(), dir.path()).is_err());
        let path = dir.path().join(FILE_NAME);
        std::fs::write(&path, "nonsense").unwrap();
        let error = WorkingSet::read(fd.as_fd(), dir.path()).unwrap_err();
        assert!(error.to_string().contains(FILE_NAME), "{error}");
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        let backwards = Range { start: 9, end: 8 };
        let runs = vec![0..2, backwards, 1..3, 4..4, 2..6];
        assert_eq!(ascending(runs), [0..2, 2..6]);
        let some = || vec![0..9, 9..MOST_WRITTEN + 1];
        let set = WorkingSet::new(some(), some());
        assert!(set.written().is_empty());
        assert_eq!(set.touched(), some());
    }

    #[test]
    fn a_file_without_what_is_read_still_tells_what_is_written() {
        let (dir, fd) = directory();
        let mut writer = StateWriter::new();
        let written: Vec<Range<u64>> = vec![0..4096, 12288..20480];
        writer.section(WRITTEN_SECTION, VERSION, &written).unwrap();
        std::fs::write(dir.path().join(FILE_NAME), writer.finish()).unwrap();
        let set = WorkingSet::read(fd.as_fd(), dir.path()).unwrap();
        assert_eq!(set, WorkingSet::new(written, Vec::new()));
    }
}
