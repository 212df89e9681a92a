//! Who may look for the holes of memory files, and who may make the kernel exchange their pages.
//!
//! While `MADV_COLLAPSE` makes a huge page of a file on tmpfs, Linux before 6.4 shows a hole where it is going to be to
//! `SEEK_DATA`: a copy that was made then would be without the data. So the one who exchanges pages locks the files, and
//! waits for those who look for holes.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

use super::layers::{LayerFile, MemoryLayers};
use crate::error::FileError;

/// Given back when it is dropped.
#[derive(Debug)]
pub struct HoleLock {
    _files: Vec<File>,
}

impl MemoryLayers {
    /// For one who looks for holes: waits until no page is exchanged.
    pub(super) fn look_for_holes(&self) -> Result<HoleLock, FileError> {
        self.lock(FlockOperation::LockShared)
    }

    /// For one who exchanges pages: waits until nobody looks for holes.
    ///
    /// # Errors
    /// A file cannot be opened once more, or not be locked.
    pub fn exchange_pages(&self) -> Result<HoleLock, FileError> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, operation: FlockOperation) -> Result<HoleLock, FileError> {
        let lock = |layer: &LayerFile| {
            // Opened once more: a lock belongs to an open file, which threads and forked processes have in common.
            let opened = File::open(format!("/proc/self/fd/{}", layer.file.as_raw_fd()));
            let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            let file = opened.map_err(errno);
            let locked = file.and_then(|file| {
                retry_on_intr(|| flock(&file, operation))?;
                Ok(file)
            });
            locked.map_err(FileError::on("lock", &layer.path))
        };
        // All in the same order: children have their parents' files behind their own.
        let files = self.files().iter().map(lock).collect::<Result<_, _>>()?;
        Ok(HoleLock { _files: files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::mpsc::{self, TryRecvError};

    #[test]
    fn pages_are_exchanged_when_nobody_looks() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let memory = MemoryLayers::plain(file, Path::new("memory")).unwrap();
        let first = memory.look_for_holes().unwrap();
        let second = memory.look_for_holes().unwrap();
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let alone = memory.exchange_pages().unwrap();
                sender.send(alone).unwrap();
            });
            drop(first);
            assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
            drop(second);
            let alone = receiver.recv().unwrap();
            drop(alone);
            memory.look_for_holes().unwrap();
        });
    }
}
