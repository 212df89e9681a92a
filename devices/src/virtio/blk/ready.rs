//! How a disk's engine wakes the event loop.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A descriptor that is readable once somebody has called [`Self::raise`].
#[derive(Debug)]
pub(super) struct Ready(OwnedFd);

impl Ready {
    pub(super) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Makes it readable.
    pub(super) fn raise(&self) {
        if let Err(error) = rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "Disk cannot wake the event loop");
        }
    }

    /// Makes it unreadable. What it stood for has to be looked at after this.
    pub(super) fn clear(&self) {
        // Non-blocking: it fails only when somebody else has looked already.
        let _seen = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Waits until it is readable, or something happens that makes it worth to look.
    pub(super) fn wait(&self, timeout: Duration) {
        let timeout = Timespec::try_from(timeout).ok();
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        // It fails for a signal or a lack of memory: the caller looks again.
        let _polled = poll(&mut fds, timeout.as_ref());
    }
}

impl AsRawFd for Ready {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
