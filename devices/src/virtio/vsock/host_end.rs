//! The host's end of a connection: a socket that takes what it can, and the bytes it owes.

use super::packet::RxBuffer;
use super::socket::{send_bytes, send_volatile};
use rustix::net::{RecvFlags, recv};
use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use vm_memory::VolatileSlice;

/// What [`HostEnd::read`] found.
#[derive(Debug)]
pub(super) enum Read {
    /// This many bytes.
    Bytes(u32),
    /// Nothing now; an event tells when to read again.
    Later,
    /// The program sends no more.
    End,
    /// The socket failed.
    Broken,
}

/// A host socket and where its two directions are.
#[derive(Debug)]
pub(super) struct HostEnd {
    /// Closed early, when nothing passes any more.
    stream: Option<UnixStream>,
    /// Bytes from the guest that the socket did not take yet.
    outbox: VecDeque<u8>,
    /// There may be something to read.
    readable: bool,
    /// The program sends no more, and everything it sent was read.
    at_end: bool,
    /// The program cannot be written to any more.
    deaf: bool,
    /// The program is to see an end of file behind the outbox.
    end_due: bool,
}

impl HostEnd {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream: Some(stream),
            outbox: VecDeque::new(),
            readable: true,
            at_end: false,
            deaf: false,
            end_due: false,
        }
    }

    /// The socket, until it is closed.
    pub(super) fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    /// True while bytes wait for room in the socket.
    pub(super) fn owes_bytes(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// True when a read may find something.
    pub(super) fn may_read(&self) -> bool {
        self.readable && !self.at_end && self.stream.is_some()
    }

    /// True when everything the program sent was read, and it sends no more.
    pub(super) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// True when the program cannot be written to any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// An event of the socket: it is worth a read again.
    pub(super) fn readable(&mut self) {
        self.readable = true;
    }

    /// Reads at most `limit` bytes into `buffer`.
    pub(super) fn read(&mut self, buffer: &RxBuffer<'_>, limit: u32) -> Read {
        let Some(stream) = &self.stream else {
            return Read::Later;
        };
        match buffer.read_from(stream, limit) {
            Ok(0) => {
                self.at_end = true;
                Read::End
            }
            Ok(count) => Read::Bytes(count),
            Err(error) if is_transient(&error) => {
                self.readable = false;
                Read::Later
            }
            Err(_) => Read::Broken,
        }
    }

    /// Writes the line that begins a stream; false when the socket does not take it.
    pub(super) fn greet(&mut self, line: &str) -> bool {
        let sent = self.stream.as_ref().map(|s| send_bytes(s, line.as_bytes()));
        match sent {
            Some(Ok(count)) => count == line.len(),
            // The program stopped reading, but what it wrote may still matter to the guest.
            Some(Err(error)) if !is_transient(&error) => {
                self.stop_writing();
                true
            }
            _ => false,
        }
    }

    /// Takes bytes from the guest; the number of bytes that are out of our hands now.
    pub(super) fn write(&mut self, data: &VolatileSlice<'_>) -> usize {
        let sent = self.send_now(data);
        if self.deaf {
            return data.len();
        }
        if let Ok(tail) = data.offset(sent)
            && !tail.is_empty()
        {
            let mut rest = vec![0; tail.len()];
            tail.copy_to(&mut rest);
            self.outbox.extend(rest);
        }
        sent
    }

    /// Sends from the outbox what the socket takes; the number of bytes that left it.
    pub(super) fn flush(&mut self) -> usize {
        let mut gone = 0;
        while let Some(stream) = &self.stream
            && !self.outbox.is_empty()
        {
            match send_bytes(stream, self.outbox.as_slices().0) {
                Ok(count) => {
                    self.outbox.drain(..count);
                    gone += count;
                }
                Err(error) if is_transient(&error) => return gone,
                Err(_) => gone += self.stop_writing(),
            }
        }
        if std::mem::take(&mut self.end_due) {
            self.shut(Shutdown::Write);
        }
        gone
    }

    /// The program is gone or does not read: bytes for it have nowhere to go. How many there were.
    pub(super) fn stop_writing(&mut self) -> usize {
        self.deaf = true;
        std::mem::take(&mut self.outbox).len()
    }

    /// The guest sends no more: the program sees an end of file after the next [`Self::flush`]
    /// that empties the outbox.
    pub(super) fn end_writing(&mut self) {
        self.end_due = true;
    }

    /// The guest takes no more: the program cannot send any more.
    pub(super) fn end_reading(&self) {
        self.shut(Shutdown::Read);
    }

    /// Closes the socket: the program sees that everything is over.
    pub(super) fn close(&mut self) {
        self.stream = None;
    }

    /// True when bytes of the program wait to be read.
    pub(super) fn has_unread_bytes(&self) -> bool {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = self.stream.as_ref().map(|s| recv(s, &mut byte[..], flags));
        matches!(peeked, Some(Ok((count, _))) if count > 0)
    }

    fn send_now(&mut self, data: &VolatileSlice<'_>) -> usize {
        let Some(stream) = self.stream.as_ref().filter(|_| self.outbox.is_empty()) else {
            return 0;
        };
        match send_volatile(stream, data) {
            Ok(count) => count,
            Err(error) if is_transient(&error) => 0,
            Err(_) => {
                self.deaf = true;
                0
            }
        }
    }

    fn shut(&self, how: Shutdown) {
        if let Some(stream) = &self.stream {
            // Fails only when the program is gone already; reading or writing finds out.
            if let Err(error) = stream.shutdown(how) {
                tracing::debug!(%error, "Host socket was already closed");
            }
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    let kind = error.kind();
    matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
