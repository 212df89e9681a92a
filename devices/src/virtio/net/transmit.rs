//! Frames from the guest.

use super::port::FramePort;
use super::state::MacAddress;
use super::{FRAMES_PER_TURN, HEADER_LENGTH, LONGEST_FRAME, TRANSMIT_QUEUE};
use crate::virtio::device::DeviceError;
use crate::virtio::rings::{Chain, Rings};
use std::io::{self, Read};
use vm_memory::GuestMemoryMmap;

/// The source address follows the header and the destination.
const SOURCE: std::ops::Range<usize> = HEADER_LENGTH + 6..HEADER_LENGTH + 12;
/// Header, two addresses and a type.
const SHORTEST_FRAME: usize = HEADER_LENGTH + 14;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The queue is empty; a doorbell comes with the next frame.
    Done,
    /// The turn is over and there may be more.
    MoreLeft,
    /// The interface was removed.
    PortGone,
}

/// The guest's frames on their way out.
#[derive(Debug)]
pub(super) struct Outgoing {
    frame: Vec<u8>,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { frame: Vec::new() }
    }

    /// Sends what is in the queue, and drops it when there is no port.
    pub(super) fn transmit(
        &mut self,
        mut port: Option<&mut (dyn FramePort + 'static)>,
        stale_mac: Option<MacAddress>,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, DeviceError> {
        let mut progress = Progress::MoreLeft;
        let mut used = false;
        for _ in 0..FRAMES_PER_TURN {
            let Some(chain) = rings.pop(TRANSMIT_QUEUE)? else {
                if rings.enable_doorbell(TRANSMIT_QUEUE)? {
                    continue;
                }
                progress = Progress::Done;
                break;
            };
            let head = chain.head_index();
            let sendable = self.read(chain, rings.memory())? && !self.is_from(stale_mac);
            rings.add_used(TRANSMIT_QUEUE, head, 0)?;
            used = true;
            if let Some(port) = port.as_deref_mut().filter(|_| sendable)
                && let Err(error) = port.send(&self.frame)
            {
                if is_gone(&error) {
                    progress = Progress::PortGone;
                    break;
                }
                // A network may lose frames; the tap's own counters tell how many.
                tracing::debug!(%error, "Frame of the guest is dropped");
            }
        }
        if used {
            rings.signal_used(TRANSMIT_QUEUE)?;
        }
        Ok(progress)
    }

    /// Reads the frame of a chain; false when it cannot be one.
    fn read(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        let broken = |source| DeviceError::Ring {
            queue: TRANSMIT_QUEUE,
            source,
        };
        let mut reader = chain.reader(memory).map_err(broken)?;
        let length = reader.available_bytes();
        if !(SHORTEST_FRAME..=LONGEST_FRAME).contains(&length) {
            return Ok(false);
        }
        self.frame.resize(length, 0);
        reader
            .read_exact(&mut self.frame)
            .map_err(DeviceError::Backend)?;
        Ok(true)
    }

    fn is_from(&self, mac: Option<MacAddress>) -> bool {
        mac.is_some_and(|mac| self.frame.get(SOURCE) == Some(&mac.0[..]))
    }
}

/// The descriptor belongs to an interface that was removed.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBADFD)
}
