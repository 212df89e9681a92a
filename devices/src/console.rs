//! Where the guest's serial output waits until somebody takes it.
//!
//! A vCPU thread writes here, so writing never blocks: when nobody takes the output, the oldest
//! bytes are dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Output that can wait, in bytes. A kernel's boot messages fit several times.
const CAPACITY: usize = 256 * 1024;

/// A bounded buffer between the UART and one reader.
#[derive(Debug)]
pub struct Console {
    output: Mutex<Output>,
    ready: EventFd,
}

#[derive(Debug, Default)]
struct Output {
    waiting: VecDeque<u8>,
    dropped: u64,
}

/// What [`Console::take`] took.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The output since the last call.
    pub bytes: Vec<u8>,
    /// How many bytes were lost right before them because nobody took them in time.
    pub dropped: u64,
}

impl Console {
    /// An empty buffer.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        let ready = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            output: Mutex::default(),
            ready,
        })
    }

    /// Adds output of the guest.
    pub fn write(&self, bytes: &[u8]) {
        let mut output = self.lock();
        let was_empty = output.waiting.is_empty();
        output.waiting.extend(bytes);
        let excess = output.waiting.len().saturating_sub(CAPACITY);
        if excess > 0 {
            output.waiting.drain(..excess);
            output.dropped += excess as u64;
        }
        if was_empty && let Err(error) = self.ready.write(1) {
            tracing::error!(%error, "Console reader cannot be woken");
        }
    }

    /// Takes all waiting output; empty when there is none. Does not block.
    #[must_use]
    pub fn take(&self) -> Taken {
        let mut output = self.lock();
        // Empty already when another call took the output of this wake-up.
        let _was_signalled = self.ready.read();
        let bytes = output.waiting.drain(..).collect();
        Taken {
            bytes,
            dropped: std::mem::take(&mut output.dropped),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable while output waits.
impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor belongs to `self.ready`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ready.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_taken_in_order_and_once() {
        let console = Console::new().unwrap();
        console.write(b"ab");
        console.write(b"c");
        assert_eq!(
            console.take(),
            Taken {
                bytes: b"abc".to_vec(),
                dropped: 0
            }
        );
        assert_eq!(console.take(), Taken::default());
        console.write(b"d");
        assert_eq!(console.take().bytes, b"d");
    }

    #[test]
    fn without_a_reader_the_oldest_bytes_are_dropped_and_counted() {
        let console = Console::new().unwrap();
        console.write(b"lost");
        console.write(&vec![b'x'; CAPACITY]);
        let taken = console.take();
        assert_eq!(taken.dropped, 4);
        assert_eq!(taken.bytes, vec![b'x'; CAPACITY]);
        assert_eq!(console.take().dropped, 0);
    }
}
