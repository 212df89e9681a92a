//! The one descriptor that the event loop waits for: the port, while the guest has room for frames, and
//! the device's own wish for another turn.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use vmm_sys_util::eventfd::EventFd;

const PORT: u64 = 0;
const AGAIN: u64 = 1;

/// What is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ready {
    /// The port has a frame, or has failed.
    pub port: bool,
    /// The device asked for another turn.
    pub again: bool,
}

/// The epoll instance.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: OwnedFd,
    again: EventFd,
    /// A descriptor of its own for the port, so that it can be taken out whatever becomes of the port.
    port: Option<OwnedFd>,
    wanted: bool,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let again = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        // SAFETY: the descriptor belongs to `again`, which outlives this call.
        let fd = unsafe { BorrowedFd::borrow_raw(again.as_raw_fd()) };
        epoll::add(&epoll, fd, EventData::new_u64(AGAIN), EventFlags::IN)?;
        Ok(Self {
            epoll,
            again,
            port: None,
            wanted: false,
        })
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// The port to watch from now on, once frames are wanted.
    pub(super) fn set_port(&mut self, port: BorrowedFd<'_>) -> io::Result<()> {
        self.forget_port()?;
        self.port = Some(port.try_clone_to_owned()?);
        Ok(())
    }

    /// There is no port any more.
    pub(super) fn forget_port(&mut self) -> io::Result<()> {
        self.want_frames(false)?;
        self.port = None;
        Ok(())
    }

    /// Whether frames of the port are of interest.
    ///
    /// A port that is not wanted is taken out: an error of it is reported in any case, and would keep the
    /// event loop spinning.
    pub(super) fn want_frames(&mut self, wanted: bool) -> io::Result<()> {
        let Some(port) = &self.port else {
            return Ok(());
        };
        if self.wanted == wanted {
            return Ok(());
        }
        if wanted {
            let data = EventData::new_u64(PORT);
            epoll::add(&self.epoll, port, data, EventFlags::IN)?;
        } else {
            epoll::delete(&self.epoll, port)?;
        }
        self.wanted = wanted;
        Ok(())
    }

    /// Asks for another turn.
    pub(super) fn again(&self) -> io::Result<()> {
        self.again.write(1)
    }

    /// What is ready now. Does not block.
    pub(super) fn take(&self) -> io::Result<Ready> {
        let empty = Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(u64::MAX),
        };
        let mut events = [empty; 2];
        let none = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = match epoll::wait(&self.epoll, &mut events[..], Some(&none)) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut ready = Ready::default();
        for event in events.iter().take(count) {
            match event.data.u64() {
                PORT => ready.port = true,
                // Non-blocking: an empty eventfd only means that the wish was seen before.
                _ => ready.again = self.again.read().is_ok(),
            }
        }
        Ok(ready)
    }
}
