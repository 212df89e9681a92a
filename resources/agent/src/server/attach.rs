//! A connection for a stream, until it has said which one it wants.

use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use proto::stdio::{ACCEPTED, MAX_LINE_BYTES, REFUSED_PREFIX};
use rustix::io::{Errno, read, write};

/// A connection that has not sent its whole line yet.
#[derive(Debug)]
pub struct Attaching {
    socket: OwnedFd,
    received: Vec<u8>,
}

/// What has become of it.
#[derive(Debug)]
pub enum Step<T> {
    /// More of the line is to come.
    Incomplete,
    /// The line is there; the bytes are what followed it.
    Asks(T, Vec<u8>),
    /// The line is wrong; the reason is for the peer.
    Wrong(String),
    /// The peer has gone.
    Gone,
}

impl Attaching {
    /// Takes over `socket`, which does not block.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: Vec::new(),
        }
    }

    /// The socket, to be watched.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there.
    pub fn receive<T: FromStr<Err: Display>>(&mut self) -> Step<T> {
        let mut buffer = [0; MAX_LINE_BYTES];
        loop {
            match read(&self.socket, &mut buffer) {
                Ok(0) => return Step::Gone,
                Ok(count) => self
                    .received
                    .extend_from_slice(buffer.get(..count).unwrap_or(&[])),
                Err(Errno::AGAIN) => return Step::Incomplete,
                Err(Errno::INTR) => continue,
                Err(_) => return Step::Gone,
            }
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let early = self.received.split_off(end + 1);
                let line = String::from_utf8_lossy(&self.received);
                return match line.trim_end_matches('\n').parse() {
                    Ok(asked) => Step::Asks(asked, early),
                    Err(error) => Step::Wrong(format!("{error}")),
                };
            }
            if self.received.len() >= MAX_LINE_BYTES {
                return Step::Wrong(format!("line is longer than {MAX_LINE_BYTES} bytes"));
            }
        }
    }

    /// Says yes and hands the connection on; `None` when the peer has gone.
    pub fn accept(self) -> Option<OwnedFd> {
        accept(&self.socket).then_some(self.socket)
    }

    /// Says why not, and closes.
    pub fn refuse(self, reason: &str) {
        refuse(&self.socket, reason);
    }

    /// Hands the connection on, for somebody else to accept or to refuse.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

/// Says yes; false when the peer has gone.
pub fn accept(socket: &OwnedFd) -> bool {
    // So few bytes fit into the buffer of a new connection.
    write(socket, ACCEPTED.as_bytes()).is_ok()
}

/// Says why not.
pub fn refuse(socket: &OwnedFd, reason: &str) {
    let line = format!("{REFUSED_PREFIX}{reason}\n");
    if let Err(errno) = write(socket, line.as_bytes()) {
        crate::say(&format!("Cannot refuse a stream ({reason}): {errno}"));
    }
}
