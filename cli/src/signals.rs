//! Signals as something to poll for.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Catches a set of signals. Readable while one is waiting.
#[derive(Debug)]
pub struct Signals {
    wake: UnixStream,
    caught: Vec<(i32, Arc<AtomicBool>)>,
}

impl Signals {
    /// Catches `signals` from now on, for as long as the process lives.
    ///
    /// # Errors
    /// No descriptors left, or a signal that cannot be caught.
    pub fn catch(signals: &[i32]) -> io::Result<Self> {
        let (wake, sender) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let mut caught = Vec::with_capacity(signals.len());
        for &signal in signals {
            let flag = Arc::new(AtomicBool::new(false));
            // Handlers run in the order of registration: the flag is up before the poll wakes.
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
            caught.push((signal, flag));
        }
        Ok(Self { wake, caught })
    }

    /// The signals that have come since the last call, each once.
    pub fn take(&self) -> Vec<i32> {
        let mut buffer = [0; 64];
        while matches!((&self.wake).read(&mut buffer), Ok(count) if count == buffer.len()) {}
        let came = self.caught.iter();
        came.filter(|(_, flag)| flag.swap(false, Ordering::AcqRel))
            .map(|&(signal, _)| signal)
            .collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use signal_hook::consts::{SIGUSR1, SIGUSR2};

    #[test]
    fn a_raised_signal_is_taken_once_and_wakes_the_poll() {
        let signals = Signals::catch(&[SIGUSR1, SIGUSR2]).unwrap();
        assert_eq!(signals.take(), Vec::<i32>::new());
        signal_hook::low_level::raise(SIGUSR2).unwrap();
        assert!(crate::poll::readable(&signals, None).unwrap());
        assert_eq!(signals.take(), [SIGUSR2]);
        assert_eq!(signals.take(), Vec::<i32>::new());
    }
}
