//! The one epoll instance that holds all host-side descriptors of a vsock device.
//!
//! It is itself the device's back-end descriptor: the machine's event loop sees one descriptor
//! that is readable when any of these has news.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events handled per call, so that a call is short.
const BATCH: usize = 64;

/// Which descriptor an event belongs to. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Token(u64);

impl Token {
    /// The listening socket.
    pub(super) const LISTENER: Self = Self(0);
    /// The eventfd that asks for attention.
    pub(super) const WAKE: Self = Self(1);
    /// The timer.
    pub(super) const TIMER: Self = Self(2);

    const FIRST_SOCKET: u64 = 16;
}

/// What happened to a descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) struct HostEvent {
    pub token: Token,
    /// The peer closed its end entirely, or the socket failed.
    pub hung_up: bool,
}

/// The epoll instance and its timer.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    next_token: u64,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let data = EventData::new_u64(Token::TIMER.0);
        epoll::add(&epoll, &timer, data, EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            epoll,
            timer,
            next_token: Token::FIRST_SOCKET,
        })
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// A token for a new socket.
    pub(super) fn token(&mut self) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        token
    }

    /// Reports `fd` again and again while it is readable.
    pub(super) fn watch_level(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            EventFlags::IN,
        )?)
    }

    /// Stops or restarts the reports of a descriptor from [`Self::watch_level`].
    pub(super) fn pause_level(&self, fd: impl AsFd, token: Token, paused: bool) -> io::Result<()> {
        let flags = if paused {
            EventFlags::empty()
        } else {
            EventFlags::IN
        };
        Ok(epoll::modify(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            flags,
        )?)
    }

    /// Reports each change of a socket once.
    ///
    /// Edge-triggered, because a hang-up cannot be masked: a closed socket whose bytes the guest
    /// does not take yet would keep the event loop spinning.
    pub(super) fn watch_socket(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::ET;
        Ok(epoll::add(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            flags,
        )?)
    }

    /// Also reports when the socket takes bytes again, or no longer. Off unless bytes wait: each
    /// read by the peer would wake the event loop for nothing.
    pub(super) fn watch_writable(&self, fd: impl AsFd, token: Token, on: bool) -> io::Result<()> {
        let out = if on {
            EventFlags::OUT
        } else {
            EventFlags::empty()
        };
        let flags = EventFlags::IN | EventFlags::ET | out;
        Ok(epoll::modify(
            &self.epoll,
            fd,
            EventData::new_u64(token.0),
            flags,
        )?)
    }

    /// Sets the timer off in `delay`, or stops it.
    pub(super) fn set_timer(&self, delay: Option<Duration>) -> io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let it_value = match delay {
            // Zero would stop the timer.
            Some(delay) => {
                Timespec::try_from(delay.max(Duration::from_nanos(1))).map_err(io::Error::other)?
            }
            None => zero,
        };
        let setting = Itimerspec {
            it_interval: zero,
            it_value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
        Ok(())
    }

    /// What happened since the last call; a bounded number of events, never waits.
    pub(super) fn poll(&self) -> io::Result<Vec<HostEvent>> {
        let mut events = Vec::<Event>::with_capacity(BATCH);
        let no_wait = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, spare, Some(&no_wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().map(HostEvent::from).collect())
    }
}

impl From<&Event> for HostEvent {
    fn from(event: &Event) -> Self {
        let (data, flags) = (event.data, event.flags);
        Self {
            token: Token(data.u64()),
            hung_up: flags.contains(EventFlags::HUP),
        }
    }
}
