//! One stream between the host and a program of the guest's own, both ways.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read};
use rustix::net::sockopt::socket_error;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use crate::server::attach;

/// How many chunks are moved in each direction before others get their turn.
const TURN_CHUNKS: usize = 8;

/// What a turn ended with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Nothing more can be moved for now.
    Blocked,
    /// There is more to move, but it is another stream's turn.
    Unfinished,
    /// Nothing will be moved any more.
    Over,
}

/// The two sockets, which do not block.
#[derive(Debug)]
pub struct Relay {
    host: OwnedFd,
    program: OwnedFd,
    /// The program has not taken the connection yet.
    connecting: bool,
    to_program: Way,
    to_host: Way,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Read and not yet written.
    pending: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// The source sends no more.
    at_end: bool,
    /// The sink has been told so.
    over: bool,
}

impl Relay {
    /// Between the host, which is still to be told whether there is a connection, and a socket that is
    /// being connected. `early` is what the host has sent already.
    pub fn new(host: OwnedFd, program: OwnedFd, early: Vec<u8>) -> Self {
        Self {
            host,
            program,
            connecting: true,
            to_program: Way {
                pending: early,
                ..Way::default()
            },
            to_host: Way::default(),
        }
    }

    /// The sockets, to be watched.
    pub fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.host.as_fd(), self.program.as_fd()]
    }

    /// Moves what can be moved without blocking. `chunk` is scratch space.
    pub fn turn(&mut self, chunk: &mut [u8]) -> Progress {
        if host_is_gone(&self.host) {
            return Progress::Over;
        }
        if self.connecting {
            match connected(&self.program) {
                Ok(()) if attach::accept(&self.host) => self.connecting = false,
                Err(Errno::AGAIN) => return Progress::Blocked,
                Ok(()) => return Progress::Over,
                Err(errno) => {
                    attach::refuse(&self.host, &errno.to_string());
                    return Progress::Over;
                }
            }
        }
        let ways = [
            self.to_program.turn(&self.host, &self.program, chunk),
            self.to_host.turn(&self.program, &self.host, chunk),
        ];
        match ways {
            [Progress::Over, Progress::Over] => Progress::Over,
            // An error of either is the end of both.
            _ if self.to_program.has_failed(ways[0]) || self.to_host.has_failed(ways[1]) => {
                Progress::Over
            }
            _ if ways.contains(&Progress::Unfinished) => Progress::Unfinished,
            _ => Progress::Blocked,
        }
    }
}

impl Way {
    fn turn(&mut self, source: &OwnedFd, sink: &OwnedFd, chunk: &mut [u8]) -> Progress {
        for _ in 0..TURN_CHUNKS {
            if self.over {
                return Progress::Over;
            }
            match self.step(source, sink, chunk) {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Progress::Blocked,
                Err(_) => return Progress::Over,
            }
        }
        Progress::Unfinished
    }

    /// Whether it has stopped before the end.
    fn has_failed(&self, progress: Progress) -> bool {
        progress == Progress::Over && !self.over
    }

    fn step(&mut self, source: &OwnedFd, sink: &OwnedFd, chunk: &mut [u8]) -> Result<(), Errno> {
        while let Some(bytes) = self
            .pending
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            self.written += send_some(sink, bytes)?;
        }
        self.pending = Vec::new();
        self.written = 0;
        if self.at_end {
            self.over = true;
            return match shutdown(sink, Shutdown::Write) {
                // It has closed by itself.
                Err(Errno::NOTCONN) => Ok(()),
                result => result,
            };
        }
        let count = loop {
            match read(source, &mut *chunk) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        self.at_end = count == 0;
        let bytes = chunk.get(..count).unwrap_or_default();
        // The common case takes no memory: what the sink takes at once is never pending.
        let sent = match send_some(sink, bytes) {
            Err(Errno::AGAIN) => 0,
            result => result?,
        };
        self.pending
            .extend_from_slice(bytes.get(sent..).unwrap_or_default());
        Ok(())
    }
}

fn send_some(sink: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    if bytes.is_empty() {
        return Ok(0);
    }
    loop {
        match send(sink, bytes, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Sending nothing tells a peer that is gone from one that has only finished sending, which epoll's
/// flags do not for vsock.
fn host_is_gone(host: &OwnedFd) -> bool {
    let dead = |errno| !matches!(errno, Errno::AGAIN | Errno::INTR);
    send(host, &[], SendFlags::NOSIGNAL).is_err_and(dead)
}

/// Whether a connection has been made: `AGAIN` when that is not known yet.
fn connected(socket: &OwnedFd) -> Result<(), Errno> {
    socket_error(socket)??;
    match rustix::net::getpeername(socket) {
        Ok(_) => Ok(()),
        Err(Errno::NOTCONN) => Err(Errno::AGAIN),
        Err(errno) => Err(errno),
    }
}
