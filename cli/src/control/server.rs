//! Serves `ctl.sock` from a poll loop.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use rustix::event::PollFlags;

use super::{Asked, MAX_LINE_BYTES, Reply, Request, VERSION};
use crate::listen::Listener;
use crate::poll;

/// Clients at one time; further ones are turned away.
const MAX_CLIENTS: usize = 64;

/// A client, for as long as it is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(u64);

/// The listener and its clients. Nothing here blocks.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    clients: Vec<Client>,
    next_id: u64,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    received: Vec<u8>,
    to_send: Vec<u8>,
    /// Waits for an answer. Nothing is read from it meanwhile.
    asked: bool,
}

impl Server {
    /// Listens at `path`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            listener: Listener::private(path)?,
            clients: Vec::new(),
            next_id: 0,
        })
    }

    /// What to poll for. [`Server::serve`] is to be called when any of it is ready.
    pub fn fds(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let clients = self.clients.iter().map(|client| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !client.asked);
            flags.set(PollFlags::OUT, !client.to_send.is_empty());
            (client.stream.as_fd(), flags)
        });
        let listener = self.listener.fd().map(|fd| (fd, PollFlags::IN));
        listener.into_iter().chain(clients).collect()
    }

    /// When [`Server::serve`] is to be called though nothing is ready.
    pub fn again_at(&self) -> Option<Instant> {
        self.listener.again_at()
    }

    /// Moves bytes and returns the requests that are complete.
    pub fn serve(&mut self) -> Vec<(ClientId, Request)> {
        self.accept();
        let mut requests = Vec::new();
        self.clients.retain_mut(|client| {
            let request = client.receive();
            let answer = match request {
                Received::Request(request) => {
                    client.asked = true;
                    requests.push((client.id, request));
                    None
                }
                Received::Wrong(message) => Some(Reply::Error { message }),
                Received::Nothing => None,
                Received::End => return false,
            };
            if let Some(answer) = answer {
                client.queue(&answer);
            }
            client.send()
        });
        requests
    }

    /// Answers a client's request. A client that has gone away is no error.
    pub fn reply(&mut self, id: ClientId, reply: &Reply) {
        self.clients.retain_mut(|client| {
            if client.id != id {
                return true;
            }
            client.asked = false;
            client.queue(reply);
            client.send()
        });
    }

    fn accept(&mut self) {
        while let Some(stream) = self.listener.accept() {
            self.admit(stream);
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        if self.clients.len() >= MAX_CLIENTS {
            tracing::warn!("More than {MAX_CLIENTS} control clients, one is turned away");
            return;
        }
        self.next_id += 1;
        self.clients.push(Client {
            id: ClientId(self.next_id),
            stream,
            received: Vec::new(),
            to_send: Vec::new(),
            asked: false,
        });
    }
}

enum Received {
    Nothing,
    Request(Request),
    Wrong(String),
    End,
}

impl Client {
    fn receive(&mut self) -> Received {
        if self.asked {
            let gone = poll::has_hung_up(&self.stream);
            return if gone {
                Received::End
            } else {
                Received::Nothing
            };
        }
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line = std::mem::take(&mut self.received);
                if end + 1 < line.len() {
                    return Received::Wrong("send one request and wait for its answer".to_owned());
                }
                return parse(&line);
            }
            if self.received.len() > MAX_LINE_BYTES {
                return Received::End;
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Received::End,
                Ok(count) => self.received.extend(buffer.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Nothing,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Received::End,
            }
        }
    }

    fn queue(&mut self, reply: &Reply) {
        match serde_json::to_vec(reply) {
            Ok(line) => {
                self.to_send.extend(line);
                self.to_send.push(b'\n');
            }
            Err(error) => tracing::error!(%error, "Cannot encode a control reply"),
        }
    }

    /// Sends what fits. `false` when the client is gone, or reads so little that it may as well be.
    fn send(&mut self) -> bool {
        while !self.to_send.is_empty() {
            match self.stream.write(&self.to_send) {
                Ok(count) => drop(self.to_send.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.to_send.len() <= MAX_LINE_BYTES
    }
}

fn parse(line: &[u8]) -> Received {
    match serde_json::from_slice::<Asked>(line) {
        Ok(asked) if asked.version == VERSION => Received::Request(asked.request),
        Ok(asked) => Received::Wrong(format!(
            "protocol version {} was asked for, {VERSION} is spoken here",
            asked.version
        )),
        Err(error) => Received::Wrong(format!("the request cannot be understood: {error}")),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
