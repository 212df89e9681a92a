//! Waiting for the kernel's device events instead of polling for their effects.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::error::Error;

/// The multicast group of the kernel's own events.
const KERNEL_GROUP: u32 = 1;

/// A subscription to device events.
#[derive(Debug)]
pub struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Subscribes: events from now on are seen.
    pub fn open() -> Result<Self, Error> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(KOBJECT_UEVENT),
        )
        .map_err(Error::system("open a device event socket"))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))
            .map_err(Error::system("subscribe to device events"))?;
        Ok(Self { socket })
    }

    /// Waits until something has happened or `timeout` has passed, and forgets what happened: the
    /// caller looks at the device itself.
    pub fn wait(&mut self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL);
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match left.and_then(|left| poll(&mut fds, Some(&left))) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::system("wait for a device event")(errno)),
                Ok(_) => break,
            }
        }
        self.drain()
    }

    /// Looks at each event whether something is there; false when it is not after `timeout`.
    pub fn wait_until(
        &mut self,
        timeout: Duration,
        is_there: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        let deadline = Instant::now() + timeout;
        while !is_there() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.wait(left)?;
        }
        Ok(true)
    }

    fn drain(&mut self) -> Result<(), Error> {
        let mut buffer = [0; 1024];
        loop {
            match recv(&self.socket, &mut buffer, RecvFlags::empty()) {
                // Overrun: events were lost, which is itself news that something happened.
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(Error::system("read a device event")(errno)),
            }
        }
    }
}
