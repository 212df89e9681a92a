//! Virtio-vsock: sockets between programs in the guest and programs on the host.
//!
//! On the host the device is a Unix socket. A program connects to it, writes `CONNECT <port>\n`,
//! reads `OK <port>\n` once the guest has accepted, and talks to the guest's port from then on. A
//! connection from the guest to port P of the host (context id 2) is made to the Unix socket
//! `<path>_P`. This process itself uses a [`VsockHandle`], without a socket file and lines.
//!
//! ```text
//!  guest   TX ring ──► packet ──► muxer ──► connection ──► host socket
//!          RX ring ◄── packet ◄── muxer ◄── connection ◄── host socket
//!       event ring ◄── reset_gate (clones only)
//! ```
//!
//! | file | job |
//! |---|---|
//! | `packet` | packets in virtqueue buffers |
//! | `muxer`, `table` | which packet belongs to which connection, whose turn it is |
//! | `connection`, `credit`, `host_end` | one stream: half-close, flow control |
//! | `host`, `handshake`, `handle` | how host programs and this process connect |
//! | `poller`, `socket`, `remainder` | host sockets that never block, and their last bytes |
//! | `reset_gate`, `state` | what a clone's guest has to be told |
//!
//! Nothing blocks and no thread is used: all host sockets sit in one epoll instance, which is the
//! descriptor that the event loop watches. A connection whose reader is slow holds at most its
//! receive buffer and stalls nobody else.

mod connection;
mod credit;
mod drops;
mod handle;
mod handshake;
mod host;
mod host_end;
mod muxer;
mod packet;
mod poller;
mod remainder;
mod reset_gate;
mod socket;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use handle::VsockHandle;
pub use host::{LONGEST_SOCKET_PATH, SocketError};
pub use reset_gate::ResetGate;
pub use state::{VSOCK_STATE_VERSION, VsockState};

use super::device::{DeviceError, DeviceKind, VirtioDevice};
use super::rings::Rings;
use credit::RECEIVE_BUFFER;
use drops::{DropKind, Drops};
use host::Listener;
use muxer::{FIRST_HOST_PORT, Muxer};
use packet::{RxBuffer, Scratch, parse_tx};
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;
const EVENT_QUEUE: u16 = 2;
/// Maximum sizes of the queues, in the order of their indices.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Packets handled per call and direction, so that other devices get their turn.
const BATCH: usize = 512;

/// The driver may use stream sockets (and does so too when this is not offered).
const FEATURE_STREAM: u64 = 1 << 0;

/// What a vsock device needs.
#[derive(Debug, Clone)]
pub struct VsockConfig {
    /// The guest's context id: 3 to 4294967294.
    pub cid: u32,
    /// Path of the Unix socket. Nothing must exist there; its name with `_<port>` behind it is used
    /// for connections from the guest. At most [`LONGEST_SOCKET_PATH`] bytes.
    pub socket: PathBuf,
}

/// Why there is no vsock device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context id has another meaning.
    #[error("Context id {found} is reserved, expected 3 to 4294967294")]
    ReservedCid {
        /// The number asked for.
        found: u32,
    },
    /// The saved state has a port that the device does not give out.
    #[error(
        "Saved vsock device goes on at host port {found:#x}, expected 0x40000000 to 0x7fffffff"
    )]
    HostPort {
        /// The port in the state.
        found: u32,
    },
    /// The socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No descriptors left, most likely.
    #[error("Cannot prepare the vsock device")]
    Prepare(#[source] io::Error),
}

/// The device. See the module's documentation.
#[derive(Debug)]
pub struct Vsock {
    muxer: Muxer,
    gate: ResetGate,
    scratch: Scratch,
    drops: Drops,
    /// The driver uses the device and has not broken it.
    active: bool,
    /// Packets of the guest were left in the TX queue, and no doorbell will remind us of them.
    tx_left: bool,
}

impl Vsock {
    /// A device of a new machine. Creates the socket file; dropping the device removes it.
    ///
    /// # Errors
    /// The context id is reserved, the socket file cannot be created, or no descriptors are left.
    pub fn new(config: &VsockConfig) -> Result<Self, VsockError> {
        Self::build(config, FIRST_HOST_PORT, ResetGate::default())
    }

    /// The device of a clone, with its own context id and socket. Its connections are gone: call
    /// [`Self::reset_connections`] before the guest runs.
    ///
    /// # Errors
    /// As for [`Self::new`], or the state names an impossible port.
    pub fn restore(config: &VsockConfig, state: &VsockState) -> Result<Self, VsockError> {
        let found = state.next_host_port;
        if !(FIRST_HOST_PORT..2 * FIRST_HOST_PORT).contains(&found) {
            return Err(VsockError::HostPort { found });
        }
        let mut gate = ResetGate::default();
        if state.active {
            gate = state.gate;
            gate.close();
        }
        Self::build(config, state.next_host_port, gate)
    }

    fn build(config: &VsockConfig, port: u32, gate: ResetGate) -> Result<Self, VsockError> {
        if matches!(config.cid, 0..=2 | u32::MAX) {
            return Err(VsockError::ReservedCid { found: config.cid });
        }
        let listener = Listener::bind(&config.socket)?;
        Ok(Self {
            muxer: Muxer::new(config.cid.into(), port, listener).map_err(VsockError::Prepare)?,
            gate,
            scratch: Scratch::new(),
            drops: Drops::default(),
            active: false,
            tx_left: false,
        })
    }

    /// What a clone has to know.
    #[must_use]
    pub fn save(&self) -> VsockState {
        VsockState {
            guest_cid: self.muxer.guest_cid(),
            next_host_port: self.muxer.next_host_port(),
            active: self.active,
            gate: self.gate,
        }
    }

    /// Opens connections to the guest from inside this process.
    #[must_use]
    pub fn handle(&self) -> VsockHandle {
        self.muxer.inbox().handle()
    }

    /// Number of connections in any state. A template should be taken when there are none.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.muxer.connections()
    }

    /// Number of packets and buffers that were dropped because they were malformed.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.total()
    }

    /// Tells a clone's guest that its connections are gone.
    ///
    /// To be called once, with the restored queues, before the vCPUs run; not after a mere pause.
    /// Until the guest has dealt with it, new connections wait.
    ///
    /// # Errors
    /// The guest's queues are broken.
    pub fn reset_connections(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.guarded(rings, |device, rings| device.gate.advance(rings))
    }

    /// Runs one step of the device while the driver uses it. A driver that breaks its queues loses
    /// its connections and is left alone until it resets the device.
    fn guarded(
        &mut self,
        rings: &mut Rings<'_>,
        step: impl FnOnce(&mut Self, &mut Rings<'_>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if !self.active {
            return Ok(());
        }
        let result = step(self, rings);
        if result.is_err() {
            self.active = false;
            self.muxer.reset();
        }
        self.report_connections();
        result
    }

    fn report_connections(&self) {
        self.muxer
            .inbox()
            .report_connections(self.muxer.connections());
    }

    fn work(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if !self.gate.is_open() {
            self.gate.advance(rings)?;
        }
        if self.tx_left {
            self.take_packets(rings)?;
        }
        if self.gate.is_open() {
            self.give_packets(rings)?;
        }
        if self.tx_left && !self.muxer.is_congested() {
            self.muxer.inbox().wake();
        }
        Ok(())
    }

    /// Handles the guest's packets.
    fn take_packets(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut used = false;
        self.tx_left = true;
        for _ in 0..BATCH {
            if self.muxer.is_congested() {
                break;
            }
            let Some(chain) = rings.pop(TX_QUEUE)? else {
                if rings.enable_doorbell(TX_QUEUE)? {
                    continue;
                }
                self.tx_left = false;
                break;
            };
            if !self.gate.is_open() {
                // The guest may have opened it before it sent this packet.
                self.gate.advance(rings)?;
            }
            let head = chain.head_index();
            match parse_tx(rings.memory(), chain, &mut self.scratch, RECEIVE_BUFFER) {
                // Sent on a connection of the template, by a guest that does not know yet.
                Ok(_) if !self.gate.is_open() => {}
                Ok(packet) if packet.src_cid() != self.muxer.guest_cid() => {
                    self.drops.count(DropKind::ForeignSource, &packet.src_cid());
                }
                Ok(packet) => self.muxer.receive(&packet),
                Err(error) => self.drops.count(DropKind::MalformedTx, &error),
            }
            rings.add_used(TX_QUEUE, head, 0)?;
            used = true;
        }
        if used {
            rings.signal_used(TX_QUEUE)?;
        }
        Ok(())
    }

    /// Fills the guest's buffers with packets.
    fn give_packets(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut used = false;
        let mut left = BATCH;
        while self.muxer.has_rx() {
            if left == 0 {
                self.muxer.inbox().wake();
                break;
            }
            left -= 1;
            let Some(chain) = rings.pop(RX_QUEUE)? else {
                if rings.enable_doorbell(RX_QUEUE)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let memory = rings.memory();
            let written = match RxBuffer::new(memory, chain, &mut self.scratch) {
                Ok(mut buffer) => {
                    if !self.muxer.fill(&mut buffer) {
                        rings.push_back(RX_QUEUE);
                        break;
                    }
                    buffer.finish(memory)
                }
                Err(error) => Err(error),
            };
            let written = written.unwrap_or_else(|error| {
                self.drops.count(DropKind::MalformedRx, &error);
                0
            });
            rings.add_used(RX_QUEUE, head, written)?;
            used = true;
        }
        if used {
            rings.signal_used(RX_QUEUE)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.muxer.guest_cid().to_le_bytes();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.get(offset..));
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn activate(&mut self, _features: u64, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.active = true;
        self.guarded(rings, Self::work)
    }

    fn queue_notified(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.tx_left |= queue == TX_QUEUE;
        self.guarded(rings, Self::work)
    }

    fn backend_fd(&self) -> Option<RawFd> {
        Some(self.muxer.fd())
    }

    fn backend_ready(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.muxer.host_events().map_err(DeviceError::Backend)?;
        self.guarded(rings, Self::work)
    }

    fn reset(&mut self) {
        self.active = false;
        self.tx_left = false;
        self.gate = ResetGate::default();
        self.muxer.reset();
        self.report_connections();
    }
}
