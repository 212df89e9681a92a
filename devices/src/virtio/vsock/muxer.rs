//! Which packet belongs to which connection, and whose turn it is.

use super::connection::{Connection, Fate, Filled, Origin};
use super::handle::Inbox;
use super::handshake::{Handshake, Handshakes, Progress};
use super::host::Listener;
use super::packet::{HOST_CID, Header, OP_REQUEST, OP_RST, Packet, Ports, RxBuffer, TYPE_STREAM};
use super::poller::{HostEvent, Poller, Token};
use super::remainder::Remainders;
use super::table::Table;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Connections that may exist at once; more are refused.
pub(super) const MOST_CONNECTIONS: usize = 1024;
/// Host ports of connections that the host asks for start here and wrap at twice this number.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;

/// Programs accepted per turn.
const ACCEPT_BATCH: usize = 64;
/// RSTs that may wait for RX buffers before the device stops taking packets from the guest.
const MOST_RESETS: usize = 256;
/// How long the guest has to answer a SHUTDOWN of both directions. Nothing is lost after that:
/// everything was delivered, and the RST that follows does not discard what the guest has.
const LINGER: Duration = Duration::from_secs(2);
/// When to try again after the process ran out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// All connections of one device and their host sockets.
#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    next_host_port: u32,
    poller: Poller,
    listener: Listener,
    inbox: Inbox,
    handshakes: Handshakes,
    table: Table,
    remainders: Remainders,
    /// RSTs for the guest that belong to no connection any more.
    resets: VecDeque<Header>,
    /// Connections with a packet for the guest, in turn.
    ready: VecDeque<Token>,
    lingering: BTreeSet<(Instant, Token)>,
    /// Set while the listener is not watched because no descriptors were left.
    accept_at: Option<Instant>,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, next_host_port: u32, listener: Listener) -> io::Result<Self> {
        let poller = Poller::new()?;
        let inbox = Inbox::new()?;
        poller.watch_level(&listener, Token::LISTENER)?;
        poller.watch_level(&inbox, Token::WAKE)?;
        Ok(Self {
            guest_cid,
            next_host_port,
            poller,
            listener,
            inbox,
            handshakes: Handshakes::default(),
            table: Table::default(),
            remainders: Remainders::default(),
            resets: VecDeque::new(),
            ready: VecDeque::new(),
            lingering: BTreeSet::new(),
            accept_at: None,
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }

    pub(super) fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    pub(super) fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    pub(super) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Connections that exist, in any state.
    pub(super) fn connections(&self) -> usize {
        self.table.len()
    }

    /// The guest forgot everything it knew. What it does not know yet stays.
    pub(super) fn reset(&mut self) {
        for token in self.table.known_to_guest() {
            self.remove(token);
        }
        self.resets.clear();
    }

    /// True when too many answers wait for the guest to take more of its packets.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= MOST_RESETS
    }

    /// Takes one packet from the guest, which comes from the guest's own context id.
    pub(super) fn receive(&mut self, packet: &Packet<'_>) {
        if packet.dst_cid() != HOST_CID || packet.type_() != TYPE_STREAM {
            self.answer_with_reset(packet);
            return;
        }
        let ports = Ports {
            host: packet.dst_port(),
            guest: packet.src_port(),
        };
        match (self.table.find(ports), packet.op()) {
            (None, OP_REQUEST) => self.open_from_guest(ports, packet),
            (None, _) => self.answer_with_reset(packet),
            (Some(token), _) => {
                if let Some(entry) = self.table.get_mut(token) {
                    let fate = entry.connection.receive(packet);
                    self.settle(token, fate);
                }
            }
        }
    }

    /// True when [`Self::fill`] may have a packet.
    pub(super) fn has_rx(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet for the guest into `buffer`; false when there is none.
    pub(super) fn fill(&mut self, buffer: &mut RxBuffer<'_>) -> bool {
        loop {
            if let Some(header) = self.resets.pop_front() {
                buffer.set_header(&header);
                return true;
            }
            let Some(token) = self.ready.pop_front() else {
                return false;
            };
            let Some(entry) = self.table.get_mut(token) else {
                continue;
            };
            entry.is_ready = false;
            match entry.connection.fill(buffer, self.guest_cid) {
                Filled::Packet => {
                    self.settle(token, Fate::Keep);
                    return true;
                }
                Filled::LastPacket => {
                    self.linger(token);
                    return true;
                }
                Filled::Nothing => {}
                Filled::Broken => self.settle(token, Fate::Reset),
            }
        }
    }

    /// Handles news of host sockets, a bounded number of them.
    pub(super) fn host_events(&mut self) -> io::Result<()> {
        for event in self.poller.poll()? {
            match event.token {
                Token::LISTENER => self.accept_programs(),
                Token::WAKE => self.take_from_process(),
                Token::TIMER => self.timer_expired(),
                _ => self.socket_event(event),
            }
        }
        Ok(())
    }

    fn socket_event(&mut self, event: HostEvent) {
        let token = event.token;
        if let Some(entry) = self.table.get_mut(token) {
            let fate = entry.connection.host_event(event.hung_up);
            self.settle(token, fate);
        } else if let Some(handshake) = self.handshakes.get_mut(token) {
            let progress = handshake.advance();
            if !matches!(progress, Progress::Incomplete)
                && let Some(handshake) = self.handshakes.remove(token)
            {
                self.handshake_over(token, handshake, &progress);
            }
        } else {
            self.remainders.host_event(token, event.hung_up);
        }
    }

    fn accept_programs(&mut self) {
        for _ in 0..ACCEPT_BATCH {
            match self.listener.accept() {
                Ok(stream) => self.begin_handshake(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_aborted(&error) => {}
                // Out of descriptors or memory. The program in the backlog would keep the listener
                // readable, so stop looking for a while.
                Err(error) => {
                    if !self.handshakes.drop_oldest() {
                        tracing::warn!(%error, "Vsock socket accepts nobody for now");
                        self.pause_accepting(true);
                        return;
                    }
                }
            }
        }
    }

    fn begin_handshake(&mut self, stream: UnixStream) {
        let token = self.poller.token();
        if let Err(error) = self.poller.watch_socket(&stream, token) {
            tracing::warn!(%error, "Vsock client cannot be watched");
            return;
        }
        let mut handshake = Handshake::new(stream);
        match handshake.advance() {
            Progress::Incomplete => self.handshakes.insert(token, handshake),
            progress => self.handshake_over(token, handshake, &progress),
        }
    }

    fn handshake_over(&mut self, token: Token, handshake: Handshake, progress: &Progress) {
        if let Progress::Connect(port) = progress {
            self.open_to_guest(token, *port, handshake.into_stream(), Origin::Listener);
        }
    }

    fn take_from_process(&mut self) {
        self.inbox.clear();
        while let Some((port, stream)) = self.inbox.take() {
            let token = self.poller.token();
            match self.poller.watch_socket(&stream, token) {
                Ok(()) => self.open_to_guest(token, port, stream, Origin::Process),
                Err(error) => tracing::warn!(%error, "Vsock connection cannot be watched"),
            }
        }
    }

    /// Asks the guest for a connection; `stream` is watched as `token` already.
    fn open_to_guest(&mut self, token: Token, port: u32, stream: UnixStream, origin: Origin) {
        if self.is_full() {
            tracing::debug!(port, "Too many vsock connections");
            return;
        }
        let ports = Ports {
            host: self.free_host_port(port),
            guest: port,
        };
        self.table
            .insert(token, Connection::to_guest(ports, stream, origin));
        self.settle(token, Fate::Keep);
    }

    fn open_from_guest(&mut self, ports: Ports, request: &Packet<'_>) {
        match self.connect_for_guest(ports.host) {
            Ok((token, stream)) => {
                self.table
                    .insert(token, Connection::from_guest(ports, stream, request));
                self.settle(token, Fate::Keep);
            }
            Err(error) => {
                tracing::debug!(port = ports.host, %error, "Guest's connection refused");
                self.answer_with_reset(request);
            }
        }
    }

    fn connect_for_guest(&mut self, port: u32) -> io::Result<(Token, UnixStream)> {
        if self.is_full() {
            return Err(io::Error::other("too many connections"));
        }
        let stream = self.listener.connect_port(port)?;
        let token = self.poller.token();
        self.poller.watch_socket(&stream, token)?;
        Ok((token, stream))
    }

    fn is_full(&self) -> bool {
        self.table.len() + self.remainders.len() >= MOST_CONNECTIONS
    }

    fn free_host_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_host_port;
            self.next_host_port = next_port(host);
            if self.table.find(Ports { host, guest }).is_none() {
                return host;
            }
        }
    }

    /// Does what has to follow any call of a connection.
    fn settle(&mut self, token: Token, fate: Fate) {
        let Some(entry) = self.table.get_mut(token) else {
            return;
        };
        match fate {
            Fate::Keep => {
                if entry.connection.wants_rx() && !entry.is_ready {
                    entry.is_ready = true;
                    self.ready.push_back(token);
                }
                let writable = entry.connection.host().owes_bytes();
                if writable != entry.is_watched_writable
                    && let Some(stream) = entry.connection.host().stream()
                {
                    entry.is_watched_writable = writable;
                    if let Err(error) = self.poller.watch_writable(stream, token, writable) {
                        tracing::warn!(%error, "Vsock connection cannot be watched");
                    }
                }
            }
            Fate::Reset => {
                let ports = entry.connection.ports();
                self.resets
                    .push_back(Header::control(self.guest_cid, ports, OP_RST));
                self.remove(token);
            }
            Fate::Forget => self.remove(token),
        }
    }

    fn remove(&mut self, token: Token) {
        let Some(entry) = self.table.remove(token) else {
            return;
        };
        if entry.is_ready {
            self.ready.retain(|other| *other != token);
        }
        if let Some(deadline) = entry.deadline {
            self.lingering.remove(&(deadline, token));
        }
        if let Some(host) = entry.connection.into_remainder() {
            self.remainders.insert(token, host);
        }
    }

    fn linger(&mut self, token: Token) {
        let deadline = Instant::now() + LINGER;
        if let Some(entry) = self.table.get_mut(token) {
            entry.deadline = Some(deadline);
            self.lingering.insert((deadline, token));
            // Later deadlines are set when the first one expires.
            if self.lingering.len() == 1 {
                self.set_timer();
            }
        }
    }

    fn timer_expired(&mut self) {
        let now = Instant::now();
        while let Some((deadline, token)) = self.lingering.first().copied()
            && deadline <= now
        {
            self.settle(token, Fate::Reset);
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.pause_accepting(false);
        }
        self.set_timer();
    }

    fn set_timer(&self) {
        let first = self.lingering.first().map(|(deadline, _)| *deadline);
        let next = first.into_iter().chain(self.accept_at).min();
        let delay = next.map(|at| at.saturating_duration_since(Instant::now()));
        if let Err(error) = self.poller.set_timer(delay) {
            tracing::error!(%error, "Vsock timer cannot be set");
        }
    }

    fn pause_accepting(&mut self, paused: bool) {
        self.accept_at = paused.then(|| Instant::now() + ACCEPT_RETRY);
        if let Err(error) = self
            .poller
            .pause_level(&self.listener, Token::LISTENER, paused)
        {
            tracing::error!(%error, "Vsock socket cannot be watched");
        }
        self.set_timer();
    }

    /// Refuses what `packet` is about. An RST is never answered.
    fn answer_with_reset(&mut self, packet: &Packet<'_>) {
        if packet.op() != OP_RST {
            self.resets.push_back(Header::reset_for(packet));
        }
    }
}

/// The host port after `port`.
fn next_port(port: u32) -> u32 {
    FIRST_HOST_PORT | (port.wrapping_add(1) & (FIRST_HOST_PORT - 1))
}

fn is_aborted(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}
