//! Locks on directories.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Stat, flock, fstat, major, minor, stat};
use rustix::io::Errno;

use crate::error::FileError;
use crate::files;

/// Tries to lock a directory without waiting; false when somebody else holds it.
pub(super) fn try_lock(
    dir: impl AsFd,
    path: &Path,
    operation: FlockOperation,
) -> Result<bool, FileError> {
    match flock(dir, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(FileError::on("lock", path)(errno)),
    }
}

/// Waits for the lock under which a `.NAME.creating` is made, taken over or renamed, so that
/// whoever finds one can lock it before it is another one. It is held for a few system calls only,
/// never while anything is written or removed. Dropping the result gives it back.
pub(super) fn lock_claims(templates: &Path) -> Result<OwnedFd, FileError> {
    let dir = files::open_directory(templates)?;
    rustix::io::retry_on_intr(|| flock(&dir, FlockOperation::LockExclusive))
        .map_err(FileError::on("lock", templates))?;
    Ok(dir)
}

/// Whether `path` still leads to the directory that is open: it may have been renamed or removed
/// while its lock was awaited.
pub(super) fn is_still_at(dir: impl AsFd, path: &Path) -> Result<bool, FileError> {
    let open = fstat(dir).map_err(FileError::on("inspect", path))?;
    match stat(path) {
        Ok(found) => Ok((found.st_dev, found.st_ino) == (open.st_dev, open.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(FileError::on("inspect", path)(errno)),
    }
}

/// How many hold a lock on the directory, as far as the kernel tells; for messages only.
pub(super) fn holders(dir: impl AsFd) -> Option<usize> {
    let stat = fstat(dir).ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    Some(count_holders(&locks, &stat)).filter(|&count| count > 0)
}

fn count_holders(locks: &str, stat: &Stat) -> usize {
    let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
    let inode = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    // `1: FLOCK  ADVISORY  READ 1234 fe:00:56789 0 EOF`; those that wait have `->` before FLOCK.
    locks
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(1) == Some(&"FLOCK") && words.get(5) == Some(&inode.as_str()))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flocks_that_are_held_on_the_same_inode_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut stat = stat(dir.path()).unwrap();
        stat.st_dev = rustix::fs::makedev(0xfe, 0);
        stat.st_ino = 77;
        let locks = "1: FLOCK  ADVISORY  READ 10 fe:00:77 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 11 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF\n\
                     3: POSIX  ADVISORY  WRITE 13 fe:00:77 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 14 fe:00:78 0 EOF\n";

        assert_eq!(count_holders(locks, &stat), 2);
    }
}
