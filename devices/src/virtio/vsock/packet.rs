//! Packets in virtqueue buffers: how a TX chain is read and how an RX chain is filled.
//!
//! Linux lays a packet out as one descriptor (header and payload together) or as two. Both are
//! used in place, without a copy, through the `virtio-vsock` crate. The specification allows any
//! other layout as well (Linux sends large payloads page by page): those go through [`Scratch`].

use super::{QUEUE_SIZES, TX_QUEUE};
use crate::virtio::rings::Chain;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};
use vm_memory::{GuestMemoryMmap, ReadVolatile, VolatileMemoryError, VolatileSlice};

/// The well-known context id of the host.
pub(super) const HOST_CID: u64 = 2;
/// The only socket type on offer.
pub(super) const TYPE_STREAM: u16 = 1;

/// Ask for a connection.
pub(super) const OP_REQUEST: u16 = 1;
/// Accept a connection.
pub(super) const OP_RESPONSE: u16 = 2;
/// Refuse or destroy a connection.
pub(super) const OP_RST: u16 = 3;
/// Announce that no more is sent, or read.
pub(super) const OP_SHUTDOWN: u16 = 4;
/// Payload.
pub(super) const OP_RW: u16 = 5;
/// Tell how much may be sent.
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
/// Ask for a credit update.
pub(super) const OP_CREDIT_REQUEST: u16 = 7;

/// SHUTDOWN flag: the sender of the packet will not receive any more.
pub(super) const SHUTDOWN_RCV: u32 = 1;
/// SHUTDOWN flag: the sender of the packet will not send any more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// SHUTDOWN flags of a connection that is over.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// Most buffers in a chain: the size of both queues.
const MOST_BUFFERS: usize = QUEUE_SIZES[TX_QUEUE as usize] as usize;
/// Largest payload that is put into one RX buffer of unusual layout, in bytes.
const MAX_SPREAD_RX: usize = 64 * 1024;

/// A packet whose header and payload lie in guest memory, or in [`Scratch`].
pub(super) type Packet<'a> = VsockPacket<'a, ()>;

/// Why a chain is not a packet. The chain goes back to the driver, and that is all.
#[derive(Debug, thiserror::Error)]
pub(super) enum PacketError {
    /// The `virtio-vsock` crate refuses it.
    #[error("Not a vsock packet: {0}")]
    Malformed(virtio_vsock::packet::Error),
    /// A driver must not make a chain longer than the queue.
    #[error("Descriptor chain has more than {MOST_BUFFERS} buffers")]
    TooManyBuffers,
    /// The descriptors do not describe guest memory.
    #[error("Descriptor chain cannot be followed")]
    Chain(#[source] virtio_queue::Error),
    /// Fewer bytes than the header promises.
    #[error("Descriptor chain is shorter than its packet")]
    Short(#[source] io::Error),
    /// Only payload that fits the announced buffer is taken.
    #[error("Payload of {found} bytes, at most {limit} are allowed")]
    Oversized {
        /// Bytes promised by the header.
        found: u32,
        /// Size of our receive buffer.
        limit: u32,
    },
    /// No room for even one byte of payload.
    #[error("Receive buffer of {0} bytes cannot hold a packet")]
    NoRoom(usize),
}

/// Holds the packet of a chain whose layout cannot be used in place.
#[derive(Debug)]
pub(super) struct Scratch {
    header: [u8; PKT_HEADER_SIZE],
    payload: Vec<u8>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            header: [0; PKT_HEADER_SIZE],
            payload: Vec::new(),
        }
    }

    fn packet(&mut self, payload_length: usize) -> Result<Packet<'_>, PacketError> {
        self.payload.resize(payload_length, 0);
        let payload = (payload_length > 0).then_some(self.payload.as_mut_slice());
        // SAFETY: the packet borrows `self` mutably for as long as it lives, so header and payload
        // stay valid and nobody else touches them.
        let packet = unsafe { VsockPacket::new(&mut self.header, payload) };
        packet.map_err(PacketError::Malformed)
    }
}

/// Reads the packet in a chain of the TX queue; its payload is at most `limit` bytes.
pub(super) fn parse_tx<'a>(
    memory: &'a GuestMemoryMmap,
    chain: Chain<'a>,
    scratch: &'a mut Scratch,
    limit: u32,
) -> Result<Packet<'a>, PacketError> {
    if is_plain(&chain)
        && let Ok(packet) = VsockPacket::from_tx_virtq_chain(memory, &mut chain.clone(), limit)
    {
        return Ok(packet);
    }
    check_length(&chain)?;
    let mut reader = chain.reader(memory).map_err(PacketError::Chain)?;
    let mut header = [0; PKT_HEADER_SIZE];
    reader.read_exact(&mut header).map_err(PacketError::Short)?;
    let mut packet = scratch.packet(0)?;
    packet
        .set_header_from_raw(&header)
        .map_err(PacketError::Malformed)?;
    let length = packet.len();
    if length > limit {
        return Err(PacketError::Oversized {
            found: length,
            limit,
        });
    }
    let mut packet = scratch.packet(length as usize)?;
    packet
        .set_header_from_raw(&header)
        .map_err(PacketError::Malformed)?;
    if let Some(payload) = packet.data_slice() {
        let mut bytes = vec![0; payload.len()];
        reader.read_exact(&mut bytes).map_err(PacketError::Short)?;
        payload.copy_from(&bytes);
    }
    Ok(packet)
}

/// One buffer of the RX queue while it is being filled.
pub(super) struct RxBuffer<'a> {
    packet: Packet<'a>,
    /// The chain that the scratch packet has to be spread over at the end.
    spread: Option<Chain<'a>>,
}

impl<'a> RxBuffer<'a> {
    /// Takes the buffer that `chain` describes.
    pub(super) fn new(
        memory: &'a GuestMemoryMmap,
        chain: Chain<'a>,
        scratch: &'a mut Scratch,
    ) -> Result<Self, PacketError> {
        if is_plain(&chain)
            && let Ok(packet) =
                VsockPacket::from_rx_virtq_chain(memory, &mut chain.clone(), u32::MAX)
            && packet.data_slice().is_some()
        {
            return Ok(Self {
                packet,
                spread: None,
            });
        }
        check_length(&chain)?;
        let writer = chain.clone().writer(memory).map_err(PacketError::Chain)?;
        let available = writer.available_bytes();
        if available <= PKT_HEADER_SIZE {
            return Err(PacketError::NoRoom(available));
        }
        let packet = scratch.packet((available - PKT_HEADER_SIZE).min(MAX_SPREAD_RX))?;
        Ok(Self {
            packet,
            spread: Some(chain),
        })
    }

    /// Moves payload from `stream` into the buffer, at most `limit` bytes and what fits.
    pub(super) fn read_from(&self, stream: &UnixStream, limit: u32) -> io::Result<u32> {
        let Some(room) = self.packet.data_slice() else {
            return Ok(0);
        };
        let length = room.len().min(limit as usize);
        let mut slice = room.subslice(0, length).map_err(io::Error::other)?;
        let count = read_volatile(stream, &mut slice)?;
        u32::try_from(count).map_err(io::Error::other)
    }

    /// Writes the header.
    pub(super) fn set_header(&mut self, header: &Header) {
        self.packet
            .set_src_cid(header.src_cid)
            .set_dst_cid(header.dst_cid)
            .set_src_port(header.ports.host)
            .set_dst_port(header.ports.guest)
            .set_len(header.length)
            .set_type(header.kind)
            .set_op(header.op)
            .set_flags(header.flags)
            .set_buf_alloc(header.buf_alloc)
            .set_fwd_cnt(header.fwd_cnt);
    }

    /// Completes the buffer; the number of bytes the driver finds in it.
    pub(super) fn finish(self, memory: &'a GuestMemoryMmap) -> Result<u32, PacketError> {
        let length = self.packet.len();
        if let Some(chain) = self.spread {
            let mut bytes = vec![0; PKT_HEADER_SIZE + length as usize];
            let (header, payload) = bytes.split_at_mut(PKT_HEADER_SIZE);
            self.packet.header_slice().copy_to(header);
            if let Some(data) = self.packet.data_slice() {
                data.copy_to(payload);
            }
            let mut writer = chain.writer(memory).map_err(PacketError::Chain)?;
            writer.write_all(&bytes).map_err(PacketError::Short)?;
        }
        Ok(length.saturating_add(HEADER_LENGTH))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "44")]
const HEADER_LENGTH: u32 = PKT_HEADER_SIZE as u32;

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    /// Port on the host's side.
    pub host: u32,
    /// Port in the guest.
    pub guest: u32,
}

/// Header of a packet to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub ports: Ports,
    pub length: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// A packet without payload.
    pub(super) fn control(guest_cid: u64, ports: Ports, op: u16) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            ports,
            length: 0,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The RST that answers `packet`, from whomever the guest addressed.
    pub(super) fn reset_for(packet: &Packet<'_>) -> Self {
        let ports = Ports {
            host: packet.dst_port(),
            guest: packet.src_port(),
        };
        Self {
            src_cid: packet.dst_cid(),
            kind: packet.type_(),
            ..Self::control(packet.src_cid(), ports, OP_RST)
        }
    }
}

/// True for the layouts that the `virtio-vsock` crate reads correctly: everything in one
/// descriptor, or a first descriptor that holds exactly the header.
///
/// With a longer first descriptor the crate would skip the payload bytes behind the header.
fn is_plain(chain: &Chain<'_>) -> bool {
    let head = chain.clone().next();
    head.is_some_and(|head| !head.has_next() || head.len() == HEADER_LENGTH)
}

/// The ring has no longer chains, but an indirect table could have 65535 buffers: a guest must not
/// keep the event loop busy with them.
fn check_length(chain: &Chain<'_>) -> Result<(), PacketError> {
    if chain.clone().nth(MOST_BUFFERS).is_some() {
        return Err(PacketError::TooManyBuffers);
    }
    Ok(())
}

fn read_volatile(mut stream: &UnixStream, slice: &mut VolatileSlice<'_>) -> io::Result<usize> {
    loop {
        match stream.read_volatile(slice) {
            Err(VolatileMemoryError::IOError(error)) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            result => return result.map_err(io::Error::other),
        }
    }
}
