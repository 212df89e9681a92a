//! Network interfaces by rtnetlink, without threads or an executor: for the host and for the agent.
//!
//! [`Netlink`] is a socket of the network namespace in which it was opened. [`links`] and [`addresses`] are
//! the requests that minivmm needs.

pub mod addresses;
pub mod links;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
pub use netlink_packet_route::RouteNetlinkMessage as Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The kernel answers in pieces of at most 32 KiB.
const ANSWER_BYTES: usize = 32 * 1024;

/// A socket to the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// A socket for requests.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn open() -> io::Result<Self> {
        Self::with_groups(0)
    }

    /// A socket that hears of changes of links.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn listen_to_links() -> io::Result<Self> {
        // RTMGRP_LINK of include/uapi/linux/rtnetlink.h.
        Self::with_groups(1)
    }

    fn with_groups(groups: u32) -> io::Result<Self> {
        // The default protocol of this family is rtnetlink, number 0.
        let kind = SocketType::RAW;
        let flags = SocketFlags::CLOEXEC;
        let socket = net::socket_with(AddressFamily::NETLINK, kind, flags, None)?;
        net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Asks for a change and waits for the kernel's word.
    ///
    /// # Errors
    /// The kernel's.
    pub fn request(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for answer in self.receive()? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                if let NetlinkPayload::Error(error) = answer.payload {
                    return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                }
            }
        }
    }

    /// Asks for a list.
    ///
    /// # Errors
    /// The kernel's.
    pub fn dump(&mut self, message: Message) -> io::Result<Vec<Message>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut list = Vec::new();
        loop {
            for answer in self.receive()? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => list.push(message),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(list),
                    _ => {}
                }
            }
        }
    }

    /// Waits for news; nothing when `patience` is over.
    ///
    /// # Errors
    /// The socket failed.
    pub fn news(&mut self, patience: Duration) -> io::Result<Vec<Message>> {
        let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        if poll(&mut fds, Some(&patience))? == 0 {
            return Ok(Vec::new());
        }
        let inner = |answer: NetlinkMessage<Message>| match answer.payload {
            NetlinkPayload::InnerMessage(message) => Some(message),
            _ => None,
        };
        Ok(self.receive()?.into_iter().filter_map(inner).collect())
    }

    fn send(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let kernel = SocketAddrNetlink::new(0, 0);
        net::sendto(&self.socket, &bytes, SendFlags::empty(), &kernel)?;
        Ok(())
    }

    /// The messages of one datagram.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<Message>>> {
        let mut buffer = vec![0; ANSWER_BYTES];
        let (length, _) = net::recv(&self.socket, &mut buffer, RecvFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        let mut messages = Vec::new();
        while !rest.is_empty() {
            let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
            let taken = usize::try_from(message.header.length).unwrap_or(usize::MAX);
            // Messages begin at multiples of 4.
            rest = rest
                .get(taken.next_multiple_of(4).max(16)..)
                .unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}
