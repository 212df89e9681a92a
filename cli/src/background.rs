//! Something slow in a thread of its own, for a poll loop to wait for.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver};

/// The result of a thread. Readable once it is there.
#[derive(Debug)]
pub struct Background<T> {
    wake: UnixStream,
    result: Receiver<T>,
}

impl<T: Send + 'static> Background<T> {
    /// Runs `work` in a new thread.
    ///
    /// # Errors
    /// No descriptors or threads left.
    pub fn start(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let (sender, result) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                if sender.send(work()).is_err() {
                    tracing::debug!("Nobody waits for a result any more");
                }
                // Wakes the loop by its end, after the result is there.
                drop(waker);
            })?;
        Ok(Self { wake, result })
    }

    /// The result, if it is there; then only once.
    pub fn take(&self) -> Option<T> {
        let ended = matches!((&self.wake).read(&mut [0]), Ok(0));
        if ended {
            self.result.try_recv().ok()
        } else {
            None
        }
    }
}

impl<T> AsFd for Background<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_there_once_the_descriptor_is_readable() {
        let (go, gate) = mpsc::channel::<()>();
        let background = Background::start("test", move || gate.recv().is_ok()).unwrap();
        assert_eq!(background.take(), None);
        go.send(()).unwrap();
        assert!(crate::poll::readable(&background, None).unwrap());
        assert_eq!(background.take(), Some(true));
        assert_eq!(background.take(), None);
    }
}
