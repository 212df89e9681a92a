//! Connections to the guest from inside the VMM's process.

use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Connections that may wait for the device to take them.
const MOST_WAITING: usize = 1024;

/// Opens connections to ports of the guest. Clones reach the same device, from any thread.
#[derive(Debug, Clone)]
pub struct VsockHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` when the device is gone.
    waiting: Mutex<Option<VecDeque<(u32, UnixStream)>>>,
    wake: OwnedFd,
    /// Connections that the device has.
    connections: Mutex<usize>,
    connections_changed: Condvar,
}

impl VsockHandle {
    /// Opens a connection to `port` of the guest, without waiting for the guest.
    ///
    /// The stream can be written to at once, also before the guest runs: the bytes follow as soon
    /// as the guest accepts. When it refuses, the stream is closed. The stream blocks; give it
    /// time-outs where the guest is not trusted to answer.
    ///
    /// # Errors
    /// The device is gone, no descriptors are left, or far too many connections wait already.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (caller, device) = UnixStream::pair()?;
        device.set_nonblocking(true)?;
        let mut waiting = self.0.lock();
        let queue = waiting.as_mut().ok_or_else(gone)?;
        if queue.len() >= MOST_WAITING {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        queue.push_back((port, device));
        drop(waiting);
        self.0.wake()?;
        Ok(caller)
    }

    /// Waits until the device has no connection left; false when it still has one at the deadline.
    ///
    /// A template is best taken then: every connection in it is one that each clone's guest has to
    /// be told about and clean up.
    #[must_use]
    pub fn wait_for_no_connections(&self, deadline: Duration) -> bool {
        let connections = self
            .0
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (left, _) = self
            .0
            .connections_changed
            .wait_timeout_while(connections, deadline, |left| *left > 0)
            .unwrap_or_else(PoisonError::into_inner);
        *left == 0
    }
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "The virtual machine has no vsock device any more",
    )
}

/// The device's end of its [`VsockHandle`]s; also how it asks itself for another turn.
#[derive(Debug)]
pub(super) struct Inbox(Arc<Shared>);

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            waiting: Mutex::new(Some(VecDeque::new())),
            wake,
            connections: Mutex::new(0),
            connections_changed: Condvar::new(),
        })))
    }

    pub(super) fn handle(&self) -> VsockHandle {
        VsockHandle(Arc::clone(&self.0))
    }

    /// Makes the descriptor readable, so that the event loop comes back.
    pub(super) fn wake(&self) {
        if let Err(error) = self.0.wake() {
            tracing::error!(%error, "Vsock device cannot wake itself");
        }
    }

    /// Makes the descriptor unreadable until the next [`Self::wake`] or connection.
    pub(super) fn clear(&self) {
        let mut count = [0; 8];
        if let Err(error) = rustix::io::read(&self.0.wake, &mut count) {
            tracing::trace!(%error, "Vsock device was not woken");
        }
    }

    /// Tells those who wait for it how many connections the device has.
    pub(super) fn report_connections(&self, connections: usize) {
        let mut reported = self
            .0
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *reported != connections {
            *reported = connections;
            self.0.connections_changed.notify_all();
        }
    }

    /// The next connection that somebody in this process asked for, and its port.
    pub(super) fn take(&self) -> Option<(u32, UnixStream)> {
        self.0.lock().as_mut().and_then(VecDeque::pop_front)
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

impl Shared {
    fn wake(&self) -> io::Result<()> {
        match rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            // A full counter is readable, which is all that matters.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<(u32, UnixStream)>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn end_of_the_last_connection_is_waited_for() {
        let inbox = Inbox::new().unwrap();
        let handle = inbox.handle();
        assert!(handle.wait_for_no_connections(Duration::ZERO));
        inbox.report_connections(2);
        assert!(!handle.wait_for_no_connections(Duration::from_millis(1)));
        let waiter =
            std::thread::spawn(move || handle.wait_for_no_connections(Duration::from_secs(60)));
        inbox.report_connections(1);
        inbox.report_connections(0);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn connections_come_in_order_and_are_closed_with_the_device() {
        let inbox = Inbox::new().unwrap();
        let handle = inbox.handle();
        let _first = handle.connect(1).unwrap();
        let mut second = handle.clone().connect(2).unwrap();
        assert_eq!(inbox.take().unwrap().0, 1);
        drop(inbox);
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        assert_eq!(
            handle.connect(3).unwrap_err().kind(),
            io::ErrorKind::NotConnected
        );
    }
}
