//! Something slow in a thread of its own, for a poll loop to wait for.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use snapshot::Wanted;

use crate::poll;

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
        vmm::thread(name).spawn(move || {
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

/// Work that is asked again and again whether somebody still wants its result. Nobody does once this is dropped.
#[derive(Debug)]
pub struct Revocable<T> {
    work: Background<T>,
    given_up: Arc<AtomicBool>,
}

impl<T: Send + 'static> Revocable<T> {
    /// As [`Background::start`].
    ///
    /// # Errors
    /// As there.
    pub fn start(
        name: &str,
        work: impl FnOnce(Wanted<'_>) -> T + Send + 'static,
    ) -> io::Result<Self> {
        let given_up = Arc::new(AtomicBool::new(false));
        let is_given_up = given_up.clone();
        let work = move || work(&|| !is_given_up.load(Ordering::Relaxed));
        Ok(Self {
            work: Background::start(name, work)?,
            given_up,
        })
    }

    /// As [`Background::take`].
    pub fn take(&self) -> Option<T> {
        self.work.take()
    }

    /// Nobody wants the result any more. Whether the work has ended at the deadline.
    pub fn give_up(&self, deadline: Instant) -> bool {
        self.given_up.store(true, Ordering::Relaxed);
        poll::readable(&self.work, Some(deadline)).unwrap_or(false)
    }
}

impl<T> AsFd for Revocable<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }
}

impl<T> Drop for Revocable<T> {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
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
    fn work_ends_when_it_is_given_up_or_dropped() {
        let work = |wanted: Wanted<'_>| while wanted() {};
        let deadline = || Instant::now() + std::time::Duration::from_secs(60);
        let given_up = Revocable::start("test", work).unwrap();
        assert!(given_up.give_up(deadline()));
        assert_eq!(given_up.take(), Some(()));

        let (ended, end) = mpsc::channel::<()>();
        let dropped = Revocable::start("test", move |wanted| {
            let _ended = ended;
            work(wanted);
        });
        drop(dropped);
        assert_eq!(end.recv(), Err(mpsc::RecvError));
    }

    #[test]
    fn the_result_is_there_once_the_descriptor_is_readable() {
        let (go, gate) = mpsc::channel::<()>();
        let background = Background::start("test", move || gate.recv().is_ok()).unwrap();
        assert_eq!(background.take(), None);
        go.send(()).unwrap();
        assert!(poll::readable(&background, None).unwrap());
        assert_eq!(background.take(), Some(true));
        assert_eq!(background.take(), None);
    }
}
