//! Streams from the host to programs of the guest's own: its TCP ports and Unix sockets.

mod relay;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use proto::forward::Target;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt,
};

use crate::error::Error;
use crate::exec::pump::CHUNK_BYTES;
use crate::server::attach::refuse;
use crate::server::poller::{Poller, Token};
use relay::{Progress, Relay};

/// How many streams may be there at once; the device has no more connections.
const MAX_RELAYS: usize = 1024;

/// All streams.
#[derive(Debug, Default)]
pub struct Relays {
    relays: BTreeMap<u32, Relay>,
    /// Those with more to move than one turn allows.
    unfinished: Vec<u32>,
    chunk: Vec<u8>,
}

impl Relays {
    /// Connects the host's socket to `target`, or says on it why not. `early` is what came on it
    /// already.
    pub fn start(
        &mut self,
        id: u32,
        host: OwnedFd,
        target: &Target,
        early: Vec<u8>,
        poller: &Poller,
    ) -> Result<(), Error> {
        if self.relays.len() >= MAX_RELAYS {
            refuse(
                &host,
                &format!("{MAX_RELAYS} connections are there already"),
            );
            return Ok(());
        }
        let program = match begin_to_connect(target) {
            Ok(program) => program,
            Err(errno) => {
                refuse(&host, &errno.to_string());
                return Ok(());
            }
        };
        let relay = Relay::new(host, program, early);
        for socket in relay.sockets() {
            poller.watch_changes(socket, Token::Relay(id))?;
        }
        self.relays.insert(id, relay);
        Ok(())
    }

    /// Something has happened at either side of a stream.
    pub fn advance(&mut self, id: u32) {
        // Made on first use: an agent that forwards nothing does without.
        self.chunk.resize(CHUNK_BYTES, 0);
        let Some(relay) = self.relays.get_mut(&id) else {
            return;
        };
        match relay.turn(&mut self.chunk) {
            Progress::Blocked => {}
            Progress::Unfinished => self.unfinished.push(id),
            Progress::Over => drop(self.relays.remove(&id)),
        }
    }

    /// Whether some stream waits for its next turn.
    pub fn has_unfinished(&self) -> bool {
        !self.unfinished.is_empty()
    }

    /// Gives every unfinished stream one more turn.
    pub fn advance_unfinished(&mut self) {
        for id in std::mem::take(&mut self.unfinished) {
            self.advance(id);
        }
    }
}

fn begin_to_connect(target: &Target) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = |family| socket_with(family, SocketType::STREAM, flags, None);
    match target {
        Target::Tcp(port) => {
            let socket = socket(AddressFamily::INET)?;
            sockopt::set_tcp_nodelay(&socket, true)?;
            match connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port.get())) {
                Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
                Err(errno) => Err(errno),
            }
        }
        Target::Unix(path) => {
            let socket = socket(AddressFamily::UNIX)?;
            connect(&socket, &SocketAddrUnix::new(path.as_str())?)?;
            Ok(socket)
        }
    }
}
