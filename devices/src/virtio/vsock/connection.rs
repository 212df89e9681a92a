//! One stream between a guest socket and a host socket.
//!
//! ```text
//! host asks:   Requesting --REQUEST sent--> Requested --RESPONSE--> Established --> Lingering
//! guest asks:                                                       Established --> Lingering
//! ```
//! Each direction ends on its own. Lingering is the time between our SHUTDOWN for both directions
//! and the guest's RST; the host socket is closed by then.

use super::credit::{Credit, RECEIVE_BUFFER};
use super::host_end::{HostEnd, Read};
use super::packet::{
    Header, OP_CREDIT_REQUEST, OP_CREDIT_UPDATE, OP_REQUEST, OP_RESPONSE, OP_RST, OP_RW,
    OP_SHUTDOWN, Packet, Ports, RxBuffer, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND,
};
use std::os::unix::net::UnixStream;

/// What becomes of a connection after it was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    /// It goes on.
    Keep,
    /// It is over and the guest has to be told with an RST.
    Reset,
    /// It is over and the guest knows.
    Forget,
}

/// What [`Connection::fill`] did with an RX buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Filled {
    /// It holds a packet.
    Packet,
    /// It holds the packet that ends the connection from our side.
    LastPacket,
    /// There was nothing to send.
    Nothing,
    /// The host socket failed.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Requesting,
    Requested,
    Established,
    Lingering,
}

/// How a host program asked for its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// With a CONNECT line; it is waiting for an OK line.
    Listener,
    /// From inside this process, without any lines.
    Process,
}

/// One connection. See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    phase: Phase,
    origin: Option<Origin>,
    host: HostEnd,
    credit: Credit,
    response_due: bool,
    credit_update_due: bool,
    shutdown_sent: u32,
    /// SHUTDOWN flags that the guest sent.
    guest_shutdown: u32,
}

impl Connection {
    /// A connection that a host program asks for.
    pub(super) fn to_guest(ports: Ports, stream: UnixStream, origin: Origin) -> Self {
        Self::new(ports, Phase::Requesting, Some(origin), stream)
    }

    /// A connection that the guest asks for, to a host socket that took it.
    pub(super) fn from_guest(ports: Ports, stream: UnixStream, request: &Packet<'_>) -> Self {
        let mut connection = Self::new(ports, Phase::Established, None, stream);
        connection.response_due = true;
        connection
            .credit
            .guest_says(request.buf_alloc(), request.fwd_cnt());
        connection
    }

    fn new(ports: Ports, phase: Phase, origin: Option<Origin>, stream: UnixStream) -> Self {
        Self {
            ports,
            phase,
            origin,
            host: HostEnd::new(stream),
            credit: Credit::default(),
            response_due: false,
            credit_update_due: false,
            shutdown_sent: 0,
            guest_shutdown: 0,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// The host's end.
    pub(super) fn host(&self) -> &HostEnd {
        &self.host
    }

    /// The host's end, when it still has to get bytes that the guest is done with.
    pub(super) fn into_remainder(self) -> Option<HostEnd> {
        Some(self.host).filter(|host| host.owes_bytes() && host.stream().is_some())
    }

    /// False while the guest has not heard of it.
    pub(super) fn is_known_to_guest(&self) -> bool {
        self.phase != Phase::Requesting
    }

    /// True when [`Self::fill`] may have a packet.
    pub(super) fn wants_rx(&self) -> bool {
        match self.phase {
            Phase::Requesting => true,
            Phase::Requested | Phase::Lingering => false,
            Phase::Established => {
                self.response_due
                    || self.credit_update_due
                    || self.shutdown_due() != self.shutdown_sent
                    || self.can_read()
            }
        }
    }

    /// Takes a packet that the guest sent on this connection.
    pub(super) fn receive(&mut self, packet: &Packet<'_>) -> Fate {
        self.credit.guest_says(packet.buf_alloc(), packet.fwd_cnt());
        match (packet.op(), self.phase) {
            (OP_RST, _) => Fate::Forget,
            (OP_RESPONSE, Phase::Requested) => self.accepted(),
            (OP_RW, Phase::Established) => self.receive_payload(packet),
            (OP_SHUTDOWN, Phase::Established | Phase::Lingering) => {
                self.receive_shutdown(packet.flags())
            }
            (OP_CREDIT_REQUEST, Phase::Established) => {
                self.credit_update_due = true;
                Fate::Keep
            }
            (OP_CREDIT_UPDATE, _) | (OP_CREDIT_REQUEST | OP_RW, Phase::Lingering) => Fate::Keep,
            _ => Fate::Reset,
        }
    }

    /// The host socket has news. `hung_up`: the program closed its end entirely.
    pub(super) fn host_event(&mut self, hung_up: bool) -> Fate {
        self.host.readable();
        self.flush();
        if hung_up {
            if self.phase != Phase::Established && !self.host.has_unread_bytes() {
                let known = self.phase == Phase::Requested;
                return if known { Fate::Reset } else { Fate::Forget };
            }
            let lost = self.host.stop_writing();
            self.forwarded(lost);
            self.close_if_over();
        }
        Fate::Keep
    }

    /// Puts the next packet for the guest into `buffer`.
    pub(super) fn fill(&mut self, buffer: &mut RxBuffer<'_>, guest_cid: u64) -> Filled {
        if self.phase == Phase::Requesting {
            self.phase = Phase::Requested;
            return self.control(buffer, guest_cid, OP_REQUEST);
        }
        if self.phase != Phase::Established {
            return Filled::Nothing;
        }
        if std::mem::take(&mut self.response_due) {
            return self.control(buffer, guest_cid, OP_RESPONSE);
        }
        if self.can_read() {
            let filled = self.fill_payload(buffer, guest_cid);
            if filled != Filled::Nothing {
                return filled;
            }
        }
        if std::mem::take(&mut self.credit_update_due) {
            return self.control(buffer, guest_cid, OP_CREDIT_UPDATE);
        }
        self.fill_shutdown(buffer, guest_cid)
    }

    fn accepted(&mut self) -> Fate {
        self.phase = Phase::Established;
        let greeted = self.origin != Some(Origin::Listener)
            || self.host.greet(&format!("OK {}\n", self.ports.host));
        if greeted { Fate::Keep } else { Fate::Reset }
    }

    fn receive_payload(&mut self, packet: &Packet<'_>) -> Fate {
        let Some(data) = packet.data_slice() else {
            return Fate::Keep;
        };
        if self.guest_shutdown & SHUTDOWN_SEND != 0 || !self.credit.receive(packet.len()) {
            return Fate::Reset;
        }
        let gone = if self.host.is_deaf() {
            data.len()
        } else {
            self.host.write(data)
        };
        self.forwarded(gone);
        self.close_if_over();
        Fate::Keep
    }

    fn receive_shutdown(&mut self, flags: u32) -> Fate {
        let earlier = self.guest_shutdown;
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // The guest waits for this RST before it frees its socket. What the host program has
            // not taken yet goes on to it without the guest.
            return Fate::Reset;
        }
        let new = self.guest_shutdown & !earlier;
        if new & SHUTDOWN_RCV != 0 {
            self.host.end_reading();
        }
        if new & SHUTDOWN_SEND != 0 {
            self.host.end_writing();
        }
        self.flush();
        Fate::Keep
    }

    fn flush(&mut self) {
        let gone = self.host.flush();
        self.forwarded(gone);
        self.close_if_over();
    }

    /// `count` bytes from the guest are out of our hands.
    fn forwarded(&mut self, count: usize) {
        // The outbox and a packet are at most as large as the receive buffer.
        let count = u32::try_from(count).unwrap_or(RECEIVE_BUFFER);
        self.credit_update_due |= self.credit.forwarded(count) && !self.host.is_deaf();
    }

    fn fill_payload(&mut self, buffer: &mut RxBuffer<'_>, guest_cid: u64) -> Filled {
        let credit = self.credit.to_guest();
        if credit == 0 {
            self.credit.ask();
            return self.control(buffer, guest_cid, OP_CREDIT_REQUEST);
        }
        match self.host.read(buffer, credit) {
            Read::Bytes(count) => {
                self.credit.sent(count);
                self.packet(buffer, guest_cid, OP_RW, count, 0);
                Filled::Packet
            }
            Read::Later => Filled::Nothing,
            Read::End => {
                self.close_if_over();
                Filled::Nothing
            }
            Read::Broken => Filled::Broken,
        }
    }

    fn fill_shutdown(&mut self, buffer: &mut RxBuffer<'_>, guest_cid: u64) -> Filled {
        let due = self.shutdown_due();
        if due == self.shutdown_sent {
            return Filled::Nothing;
        }
        self.shutdown_sent = due;
        self.packet(buffer, guest_cid, OP_SHUTDOWN, 0, due);
        if due == SHUTDOWN_BOTH {
            self.phase = Phase::Lingering;
            return Filled::LastPacket;
        }
        Filled::Packet
    }

    fn control(&mut self, buffer: &mut RxBuffer<'_>, guest_cid: u64, op: u16) -> Filled {
        self.packet(buffer, guest_cid, op, 0, 0);
        Filled::Packet
    }

    fn packet(
        &mut self,
        buffer: &mut RxBuffer<'_>,
        guest_cid: u64,
        op: u16,
        length: u32,
        flags: u32,
    ) {
        let (buf_alloc, fwd_cnt) = self.credit.announce();
        self.credit_update_due = false;
        let control = Header::control(guest_cid, self.ports, op);
        buffer.set_header(&Header {
            length,
            flags,
            buf_alloc,
            fwd_cnt,
            ..control
        });
    }

    /// True when a read from the host socket may lead to a packet.
    fn can_read(&self) -> bool {
        self.phase == Phase::Established
            && self.host.may_read()
            && self.guest_shutdown & SHUTDOWN_RCV == 0
            && !self.credit.is_stalled()
    }

    /// SHUTDOWN flags that the guest has to know by now.
    fn shutdown_due(&self) -> u32 {
        if self.both_over() {
            return SHUTDOWN_BOTH;
        }
        let send = if self.host.is_at_end() {
            SHUTDOWN_SEND
        } else {
            0
        };
        let receive = if self.host.is_deaf() { SHUTDOWN_RCV } else { 0 };
        send | receive
    }

    fn both_over(&self) -> bool {
        let from_host = self.host.is_at_end() || self.guest_shutdown & SHUTDOWN_RCV != 0;
        let guest_ended = self.guest_shutdown & SHUTDOWN_SEND != 0;
        from_host && (self.host.is_deaf() || (guest_ended && !self.host.owes_bytes()))
    }

    /// Frees the host socket as early as possible: the program sees that everything is over.
    fn close_if_over(&mut self) {
        if self.both_over() {
            self.host.close();
        }
    }
}
