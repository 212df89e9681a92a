//! Operations through an io_uring.

use super::{Action, Completion, Operation};
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::{fmt, io};

/// What the ring must be able to do: all of it is in Linux since 5.6.
const NEEDED: [u8; 4] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// A ring, and the operations in it.
pub(in super::super) struct Uring {
    ring: IoUring,
    /// The kernel may still look at the lists of buffers in them.
    running: HashMap<u64, Operation>,
    /// What the kernel did not take.
    refused: Vec<u64>,
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for `depth` operations that makes `ready` readable with each completion.
    pub(super) fn new(depth: u32, ready: RawFd) -> io::Result<Self> {
        let ring = IoUring::new(depth)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !NEEDED.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter().register_eventfd(ready)?;
        Ok(Self {
            ring,
            running: HashMap::new(),
            refused: Vec::new(),
        })
    }

    /// # Safety
    /// See [`super::Engine::push`]. No more operations than `depth` are under way.
    pub(super) unsafe fn push(&mut self, token: u64, operation: Operation) {
        let entry = entry(&operation).user_data(token);
        // The list of buffers is on the heap, and stays where it is.
        self.running.insert(token, operation);
        // SAFETY: the caller keeps file and buffers, and `running` the list of buffers, until the
        // completion.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            // Only when earlier ones were not taken: hand them over and try once more.
            drop(self.submit());
            // SAFETY: as above.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.running.remove(&token);
                self.refused.push(token);
            }
        }
    }

    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.ring.submit()?;
        if self.refused.is_empty() {
            Ok(())
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    pub(super) fn completed(&mut self) -> Vec<Completion> {
        let completions = self.ring.completion().map(|entry| {
            let result = usize::try_from(entry.result());
            let result = result.map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            (entry.user_data(), result)
        });
        let mut completions: Vec<_> = completions.collect();
        let refused = std::mem::take(&mut self.refused).into_iter();
        completions.extend(refused.map(|token| (token, Err(io::ErrorKind::WouldBlock.into()))));
        for (token, _) in &completions {
            self.running.remove(token);
        }
        completions
    }
}

impl Drop for Uring {
    /// Nobody may free a buffer that the kernel still writes to.
    fn drop(&mut self) {
        while !self.running.is_empty() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => drop(self.completed()),
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "Cannot wait for a disk's io_uring");
                    // The kernel may write to memory that is about to be freed.
                    std::process::abort();
                }
            }
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, ResourceBusy, WouldBlock};
    matches!(error.kind(), Interrupted | ResourceBusy | WouldBlock)
}

fn entry(operation: &Operation) -> squeue::Entry {
    let file = types::Fd(operation.file);
    let offset = operation.offset;
    match &operation.action {
        Action::Read(buffers) => opcode::Readv::new(file, buffers.as_ptr().cast(), count(buffers))
            .offset(offset)
            .build(),
        Action::Write(buffers) => {
            opcode::Writev::new(file, buffers.as_ptr().cast(), count(buffers))
                .offset(offset)
                .build()
        }
        Action::Allocate(mode, length) => opcode::Fallocate::new(file, *length)
            .offset(offset)
            .mode(*mode)
            .build(),
        Action::Sync => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build(),
    }
}

fn count<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}
