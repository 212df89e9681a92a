//! How operations on a disk's files are carried out without waiting for them.

mod uring;
mod worker;

use super::ready::Ready;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use uring::Uring;
use worker::Worker;

/// A piece of memory that the kernel reads from or writes to.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Buffer(libc::iovec);

// SAFETY: it is an address and a length. Who hands it to an engine answers for the memory.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(super) fn new(start: *mut u8, length: usize) -> Self {
        Self(libc::iovec {
            iov_base: start.cast(),
            iov_len: length,
        })
    }

    pub(super) fn length(&self) -> usize {
        self.0.iov_len
    }

    /// Its first part.
    pub(super) fn limited(self, length: usize) -> Self {
        Self::new(self.0.iov_base.cast(), self.length().min(length))
    }

    /// What is behind its first `length` bytes, at most all of it.
    pub(super) fn behind(self, length: usize) -> Self {
        let skipped = length.min(self.length());
        let start: *mut u8 = self.0.iov_base.cast();
        Self::new(start.wrapping_add(skipped), self.length() - skipped)
    }
}

/// One system call's worth of work on a file.
#[derive(Debug)]
pub(super) struct Operation {
    pub file: RawFd,
    /// Where in the file, in bytes.
    pub offset: u64,
    pub action: Action,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Action {
    Read(Vec<Buffer>),
    Write(Vec<Buffer>),
    /// `fallocate` with a mode, for so many bytes.
    Allocate(i32, u64),
    /// `fdatasync`.
    Sync,
}

/// Which operation has ended, and how: with the number of bytes moved.
pub(super) type Completion = (u64, io::Result<usize>);

/// Carries out operations, in any order. What is under way when it is dropped is waited for.
#[derive(Debug)]
pub(super) enum Engine {
    Uring(Box<Uring>),
    Worker(Worker),
}

impl Engine {
    /// An io_uring where the host allows one, a thread otherwise; for so many operations at once.
    /// `ready` becomes readable with every completion.
    ///
    /// # Errors
    /// There can be no thread either.
    pub(super) fn start(depth: u32, ready: &Arc<Ready>) -> io::Result<Self> {
        match Uring::new(depth, ready.as_raw_fd()) {
            Ok(uring) => Ok(Self::Uring(Box::new(uring))),
            Err(error) => {
                tracing::debug!(%error, "No io_uring for a disk, it gets a thread");
                Self::start_worker(ready)
            }
        }
    }

    /// The engine for hosts without io_uring.
    pub(super) fn start_worker(ready: &Arc<Ready>) -> io::Result<Self> {
        Worker::spawn(ready.clone()).map(Self::Worker)
    }

    /// Takes an operation; it begins with [`Self::submit`] at the latest.
    ///
    /// # Safety
    /// The file stays open, and the buffers stay mapped and are used by nobody else on the host who
    /// relies on their content, until [`Self::completed`] has told of the token, or the engine is
    /// dropped.
    pub(super) unsafe fn push(&mut self, token: u64, operation: Operation) {
        match self {
            // SAFETY: the same contract.
            Self::Uring(uring) => unsafe { uring.push(token, operation) },
            // SAFETY: the same contract.
            Self::Worker(worker) => unsafe { worker.push(token, operation) },
        }
    }

    /// Lets everything begin that was pushed.
    ///
    /// # Errors
    /// The kernel has no room now: to be called again.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Worker(_) => Ok(()),
        }
    }

    /// What has ended since the last call.
    pub(super) fn completed(&mut self) -> Vec<Completion> {
        match self {
            Self::Uring(uring) => uring.completed(),
            Self::Worker(worker) => worker.completed(),
        }
    }
}
