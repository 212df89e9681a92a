//! One ttrpc connection: bytes in, requests out; answers in, bytes out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proto::frame::Frame;
use protobuf::Message;
use rustix::io::{Errno, read, write};
use ttrpc::proto::{
    MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE,
    MessageHeader,
};
use ttrpc::{Code, Request, Response, get_status};

use crate::error::Refusal;

/// What a call answers: its encoded message, or why not.
pub type Answer = Result<Vec<u8>, Refusal>;

const READ_BYTES: usize = 4096;
/// A peer that reads none of its answers for so long is cut off.
const MAX_UNSENT_BYTES: usize = 2 * MESSAGE_LENGTH_MAX;

/// The connection is of no use any more.
#[derive(Debug)]
pub struct Closed;

/// A connection that does not block.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    received: Vec<u8>,
    unsent: Vec<u8>,
}

impl Connection {
    /// Takes over `socket`.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            received: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// The socket, to be watched.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads what is there and returns the requests that are complete. The flag tells whether the
    /// peer has finished sending.
    pub fn receive(&mut self) -> Result<(Vec<(u32, Request)>, bool), Closed> {
        let mut requests = Vec::new();
        let mut buffer = [0; READ_BYTES];
        loop {
            match read(&self.socket, &mut buffer) {
                Ok(0) => return Ok((requests, true)),
                Ok(count) => self
                    .received
                    .extend_from_slice(buffer.get(..count).unwrap_or(&[])),
                Err(Errno::AGAIN) => return Ok((requests, false)),
                Err(Errno::INTR) => continue,
                Err(_) => return Err(Closed),
            }
            while let Some(frame) = self.next_frame()? {
                // Anything else is ttrpc streaming, which no call of ours uses.
                if frame.kind == MESSAGE_TYPE_REQUEST {
                    match Request::parse_from_bytes(&frame.payload) {
                        Ok(request) => requests.push((frame.stream_id, request)),
                        Err(error) => {
                            let refusal = Refusal::invalid(format!("Malformed request: {error}"));
                            self.answer(frame.stream_id, Err(refusal))?;
                        }
                    }
                }
            }
        }
    }

    fn next_frame(&mut self) -> Result<Option<Frame>, Closed> {
        let Some(header) = self.received.first_chunk::<MESSAGE_HEADER_LENGTH>() else {
            return Ok(None);
        };
        let length = usize::try_from(MessageHeader::from(header).length).unwrap_or(usize::MAX);
        let whole = MESSAGE_HEADER_LENGTH.saturating_add(length);
        if self.received.len() < whole && length <= MESSAGE_LENGTH_MAX {
            return Ok(None);
        }
        // A frame that is too long is refused here, before anything is kept for it.
        let frame = Frame::read(&mut self.received.as_slice()).map_err(|_| Closed)?;
        self.received.drain(..whole);
        if self.received.is_empty() {
            // What one large request needed is not kept for the life of the connection.
            self.received = Vec::new();
        }
        Ok(frame)
    }

    /// Answers the request with that stream id.
    pub fn answer(&mut self, stream_id: u32, answer: Answer) -> Result<(), Closed> {
        let mut response = Response::new();
        match answer {
            Ok(payload) => response.payload = payload,
            Err(Refusal { code, message }) => {
                response.status = Some(get_status(code, message)).into();
            }
        }
        let payload = response.write_to_bytes().map_err(|_| Closed)?;
        let frame = Frame {
            stream_id,
            kind: MESSAGE_TYPE_RESPONSE,
            payload,
        };
        frame.write(&mut self.unsent).map_err(|_| Closed)?;
        self.flush()
    }

    /// Sends what could not be sent before.
    pub fn flush(&mut self) -> Result<(), Closed> {
        while !self.unsent.is_empty() {
            match write(&self.socket, &self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.unsent.len() <= MAX_UNSENT_BYTES => return Ok(()),
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }
}

/// The refusal of a call that is not served.
pub fn unknown(request: &Request) -> Refusal {
    let text = format!(
        "{}/{} is not served by this agent",
        request.service, request.method
    );
    Refusal::new(Code::UNIMPLEMENTED, text)
}
