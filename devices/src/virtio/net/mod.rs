//! Virtio-net: a network card whose cable is a tap interface of the host (virtio 1.2, section 5.1).
//!
//! The header of each frame, with its checksum and segmentation offloads, is passed through between the
//! guest and the tap, which both know its layout: neither side computes a checksum for a frame that stays
//! on this host, and a frame has up to 64 KiB.
//!
//! | file | job |
//! |---|---|
//! | `port` | what a frame goes to and comes from: a tap |
//! | `offloads` | features, and what they mean for the tap |
//! | `receive` | frames to the guest |
//! | `transmit` | frames from the guest |
//! | `watch` | the one descriptor that the event loop waits for |
//! | `state` | what a clone has to know |
//!
//! A card without a port has no link: what the guest sends is dropped. A template's card is one, and a
//! clone gets its port and its own address at the restore. Until the guest's kernel has taken that over it still
//! uses the template's address, and so do all other clones; frames from that address are dropped.
//!
//! There is no MTU feature: a driver takes the device's value as its upper limit for ever, and a clone may
//! get a network with a larger one.

mod offloads;
mod port;
mod receive;
mod state;
#[cfg(test)]
mod tests;
mod transmit;
mod watch;

pub use port::{FramePort, TapPort, open_tap};
pub use state::{MacAddress, NET_STATE_VERSION, NetState};

use super::device::{DeviceError, DeviceKind, VirtioDevice};
use super::rings::Rings;
use receive::Incoming;
use std::io;
use std::os::fd::RawFd;
use transmit::Outgoing;
use virtio_bindings::virtio_net::VIRTIO_NET_S_LINK_UP;
use watch::Watch;

const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;
const QUEUE_SIZE: u16 = 256;
/// Bytes of the header in front of each frame (virtio 1.2, section 5.1.6).
pub const HEADER_LENGTH: usize = 12;
/// The longest frame with its header: 64 KiB behind an Ethernet header with a VLAN tag.
const LONGEST_FRAME: usize = HEADER_LENGTH + 18 + 0x1_0000;
/// Frames of each direction per turn, so that a busy network does not keep the event loop from others.
const FRAMES_PER_TURN: usize = 64;

/// Why there is no network device.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No descriptors left, most likely.
    #[error("Cannot prepare the network device")]
    Prepare(#[source] io::Error),
    /// The tap does not take the header or the offloads.
    #[error("Cannot use the tap interface")]
    Port(#[source] io::Error),
}

/// The device. See the module's documentation.
#[derive(Debug)]
pub struct Net {
    mac: MacAddress,
    /// The address that the guest's kernel has until it is told its own.
    stale_mac: Option<MacAddress>,
    port: Option<Box<dyn FramePort>>,
    watch: Watch,
    incoming: Incoming,
    outgoing: Outgoing,
    features: u64,
    /// The driver uses the device and has not broken it.
    active: bool,
}

impl Net {
    /// The device of a new machine; without a port it has no link.
    ///
    /// # Errors
    /// No descriptors left, or the port is not usable.
    pub fn new(mac: MacAddress, port: Option<Box<dyn FramePort>>) -> Result<Self, NetError> {
        let mut net = Self {
            mac,
            stale_mac: None,
            port: None,
            watch: Watch::new().map_err(NetError::Prepare)?,
            incoming: Incoming::new(),
            outgoing: Outgoing::new(),
            features: 0,
            active: false,
        };
        if let Some(port) = port {
            net.plug_in(port)?;
        }
        Ok(net)
    }

    /// The device of a template, in a clone that has no port yet.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn restore(state: &NetState) -> Result<Self, NetError> {
        Self::new(state.mac, None)
    }

    /// Gives a clone its own address and its port. To be called through
    /// [`super::mmio::MmioTransport::change_config`], which tells the driver.
    ///
    /// # Errors
    /// The port is not usable.
    pub fn connect(&mut self, mac: MacAddress, port: Box<dyn FramePort>) -> Result<(), NetError> {
        self.plug_in(port)?;
        self.stale_mac = Some(self.mac).filter(|stale| *stale != mac);
        self.mac = mac;
        Ok(())
    }

    /// What a clone has to know.
    #[must_use]
    pub fn save(&self) -> NetState {
        NetState {
            mac: self.mac,
            link_up: self.has_link(),
        }
    }

    /// There is a port.
    #[must_use]
    pub fn has_link(&self) -> bool {
        self.port.is_some()
    }

    fn plug_in(&mut self, mut port: Box<dyn FramePort>) -> Result<(), NetError> {
        let offloads = offloads::of_tap(self.features);
        port.set_offloads(offloads).map_err(NetError::Port)?;
        self.watch.set_port(port.fd()).map_err(NetError::Prepare)?;
        self.port = Some(port);
        Ok(())
    }

    /// Moves frames both ways. A driver that breaks a queue is left alone until it resets the device.
    fn serve(&mut self, rings: &mut Rings<'_>, direction: Direction) -> Result<(), DeviceError> {
        if !self.active {
            return Ok(());
        }
        let moved = match direction {
            Direction::Receive => self.receive(rings),
            Direction::Transmit => self.transmit(rings),
        };
        self.active = moved.is_ok();
        if moved.is_err() {
            // Frames that nobody takes must not keep the event loop awake.
            self.watch
                .want_frames(false)
                .map_err(DeviceError::Backend)?;
        }
        moved
    }

    fn receive(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let Some(port) = &mut self.port else {
            return Ok(());
        };
        let got = self.incoming.receive(port.as_mut(), rings)?;
        match got {
            receive::Progress::MoreLater => self.watch.want_frames(true),
            // A doorbell comes with new buffers.
            receive::Progress::NoBuffers => self.watch.want_frames(false),
            receive::Progress::PortGone => return self.lose_port(rings),
        }
        .map_err(DeviceError::Backend)
    }

    fn transmit(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let port = self.port.as_deref_mut();
        match self.outgoing.transmit(port, self.stale_mac, rings)? {
            transmit::Progress::Done => Ok(()),
            transmit::Progress::MoreLeft => self.watch.again().map_err(DeviceError::Backend),
            transmit::Progress::PortGone => self.lose_port(rings),
        }
    }

    /// Somebody removed the interface: the cable is cut.
    fn lose_port(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        tracing::warn!("Tap interface is gone; the guest has no link any more");
        self.watch.forget_port().map_err(DeviceError::Backend)?;
        self.port = None;
        rings.announce_config();
        self.watch.again().map_err(DeviceError::Backend)
    }

    fn config(&self) -> [u8; 8] {
        let status = if self.has_link() {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        let mut config = [0; 8];
        config[..6].copy_from_slice(&self.mac.0);
        config[6] = u8::try_from(status).unwrap_or(0);
        config
    }
}

/// Which way frames go.
#[derive(Debug, Clone, Copy)]
enum Direction {
    Receive,
    Transmit,
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        offloads::OFFERED
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    /// The layout of virtio 1.2, section 5.1.4: the address, and the status.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(config.into_iter().skip(skipped)) {
            *byte = value;
        }
    }

    fn activate(&mut self, features: u64, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.features = features;
        self.incoming
            .set_mergeable(offloads::has_mergeable(features));
        if let Some(port) = &mut self.port {
            let offloads = offloads::of_tap(features);
            port.set_offloads(offloads).map_err(DeviceError::Backend)?;
        }
        self.active = true;
        // The driver's buffers come with a doorbell.
        Ok(())
    }

    fn queue_notified(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        match queue {
            RECEIVE_QUEUE => self.serve(rings, Direction::Receive),
            TRANSMIT_QUEUE => self.serve(rings, Direction::Transmit),
            _ => Ok(()),
        }
    }

    fn backend_fd(&self) -> Option<RawFd> {
        Some(self.watch.as_raw_fd())
    }

    fn backend_ready(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let ready = self.watch.take().map_err(DeviceError::Backend)?;
        if ready.again {
            self.serve(rings, Direction::Transmit)?;
        }
        if ready.port {
            self.serve(rings, Direction::Receive)?;
        }
        Ok(())
    }

    /// The port stays; its frames wait in the tap's own queue, which drops what is too much.
    fn reset(&mut self) {
        self.active = false;
        self.features = 0;
        self.incoming = Incoming::new();
        self.outgoing = Outgoing::new();
        if let Err(error) = self.watch.want_frames(false) {
            tracing::error!(%error, "Tap interface cannot be left alone");
        }
    }
}
