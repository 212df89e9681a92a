//! The one place where the agent waits.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use crate::error::Error;
use crate::exec::End;

/// The most events that one wait reports.
const EVENTS: usize = 32;

/// What an event is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Token {
    /// A connection waits on the ttrpc listener.
    CallListener,
    /// A connection waits on the stdio listener.
    StdioListener,
    /// A signal is pending.
    Signal,
    /// A background job is done.
    Job,
    /// A ttrpc connection.
    Call(u32),
    /// A stdio connection that has not said yet which stream it wants.
    Attach(u32),
    /// One end of a command's stream.
    Stream(u32, End),
    /// A connection waits on the listener for programs of the guest's own.
    ForwardListener,
    /// A connection that has not said yet which program it wants.
    Asking(u32),
    /// Either side of a connection to such a program.
    Relay(u32),
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, id, end) = match self {
            Self::CallListener => (0, 0, 0),
            Self::StdioListener => (1, 0, 0),
            Self::Signal => (2, 0, 0),
            Self::Job => (3, 0, 0),
            Self::Call(id) => (4, id, 0),
            Self::Attach(id) => (5, id, 0),
            Self::Stream(id, end) => (6, id, end.number()),
            Self::ForwardListener => (7, 0, 0),
            Self::Asking(id) => (8, id, 0),
            Self::Relay(id) => (9, id, 0),
        };
        u64::from(id) << 16 | kind << 8 | u64::from(end)
    }

    fn decode(data: u64) -> Option<Self> {
        let [end, kind, id @ .., _, _] = data.to_le_bytes();
        let id = u32::from_le_bytes(id);
        match kind {
            0 => Some(Self::CallListener),
            1 => Some(Self::StdioListener),
            2 => Some(Self::Signal),
            3 => Some(Self::Job),
            4 => Some(Self::Call(id)),
            5 => Some(Self::Attach(id)),
            6 => Some(Self::Stream(id, End::from_number(end)?)),
            7 => Some(Self::ForwardListener),
            8 => Some(Self::Asking(id)),
            9 => Some(Self::Relay(id)),
            _ => None,
        }
    }
}

/// An epoll instance.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller")
            .field("epoll", &self.epoll)
            .finish_non_exhaustive()
    }
}

impl Poller {
    /// Watches nothing yet.
    pub fn new() -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Error::system("create an epoll instance"))?;
        Ok(Self {
            epoll,
            events: Vec::with_capacity(EVENTS),
        })
    }

    /// Reports `token` whenever `source` has something to read.
    pub fn watch_input(&self, source: impl AsFd, token: Token) -> Result<(), Error> {
        self.add(source, token, epoll::EventFlags::IN)
    }

    /// Reports `token` once for every change of `source` in either direction. Whoever handles it
    /// must go on until the descriptor would block.
    pub fn watch_changes(&self, source: impl AsFd, token: Token) -> Result<(), Error> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        self.add(source, token, flags)
    }

    fn add(&self, source: impl AsFd, token: Token, flags: epoll::EventFlags) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(token.encode());
        epoll::add(&self.epoll, source, data, flags).map_err(Error::system("watch a descriptor"))
    }

    /// Stops watching. Needed only where another descriptor keeps the same file open.
    pub fn forget(&self, source: impl AsFd) -> Result<(), Error> {
        epoll::delete(&self.epoll, source).map_err(Error::system("stop watching a descriptor"))
    }

    /// Waits for events; none when `timeout` has passed.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Vec<Token>, Error> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        self.events.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::system("wait for events")(errno)),
        }
        Ok(self
            .events
            .iter()
            .filter_map(|event| Token::decode(event.data.u64()))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip() {
        let tokens = [
            Token::CallListener,
            Token::StdioListener,
            Token::Signal,
            Token::Job,
            Token::Call(u32::MAX),
            Token::Attach(7),
            Token::Stream(u32::MAX - 1, End::StderrSink),
            Token::Stream(1, End::StdinSource),
            Token::ForwardListener,
            Token::Asking(3),
            Token::Relay(u32::MAX),
        ];
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
