//! The transport reset of a clone, and the time until its guest has dealt with it.
//!
//! The guest's connections belong to the template. The device says so with an event; the driver
//! resets its sockets, reads its context id again and then gives the event buffer back. Packets
//! for new connections that came in between would be lost with the old ones, so the gate stays
//! closed until that buffer is there.

use super::{EVENT_QUEUE, QUEUE_SIZES};
use crate::virtio::device::DeviceError;
use crate::virtio::rings::{Chain, Rings};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryMmap, Le32};

/// `id` of `struct virtio_vsock_event`: all connections are gone.
const TRANSPORT_RESET: u32 = 0;
/// Length of `struct virtio_vsock_event` in bytes.
const EVENT_LENGTH: u32 = 4;

/// Buffers that are tried at once for one event.
const MOST_BUFFERS: u16 = QUEUE_SIZES[EVENT_QUEUE as usize];

/// Progress of a transport reset. Saved with the device: a template of a clone may be taken
/// before the guest has run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetGate {
    /// The event was not sent yet: there was no buffer for it.
    event_due: bool,
    /// The driver's available index by which it has given back the buffers of all events.
    awaited_index: Option<u16>,
}

impl ResetGate {
    /// Closes the gate.
    pub(super) fn close(&mut self) {
        self.event_due = true;
    }

    /// True when packets may pass, in either direction.
    pub(super) fn is_open(&self) -> bool {
        !self.event_due && self.awaited_index.is_none()
    }

    /// Sends the event when it is due, and opens the gate when the guest has dealt with it.
    pub(super) fn advance(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if self.event_due {
            self.send_event(rings)?;
        }
        if let Some(awaited) = self.awaited_index {
            let available = rings.doorbell_at_next_buffer(EVENT_QUEUE)?;
            if !is_before(available, awaited) {
                self.awaited_index = None;
            }
        }
        Ok(())
    }

    fn send_event(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut used = false;
        for _ in 0..MOST_BUFFERS {
            let Some(chain) = rings.pop(EVENT_QUEUE)? else {
                if rings.enable_doorbell(EVENT_QUEUE)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            // Before the driver can see the event: what it adds later is its answer.
            let available = rings.doorbell_at_next_buffer(EVENT_QUEUE)?;
            let written = if write_event(rings.memory(), chain) {
                EVENT_LENGTH
            } else {
                0
            };
            if written > 0 {
                let earlier = self
                    .awaited_index
                    .filter(|index| is_before(available, *index));
                self.awaited_index = Some(earlier.unwrap_or(available).wrapping_add(1));
                self.event_due = false;
            }
            rings.add_used(EVENT_QUEUE, head, written)?;
            used = true;
            if !self.event_due {
                break;
            }
        }
        if self.event_due {
            // A driver that goes on adding buffers that cannot be used is not listened to for ever.
            rings.doorbell_at_next_buffer(EVENT_QUEUE)?;
        }
        if used {
            rings.signal_used(EVENT_QUEUE)?;
        }
        Ok(())
    }
}

/// False when the buffer is too small or cannot be written.
fn write_event(memory: &GuestMemoryMmap, chain: Chain<'_>) -> bool {
    let event = Le32::from(TRANSPORT_RESET);
    chain
        .writer(memory)
        .is_ok_and(|mut writer| writer.write_obj(event).is_ok())
}

/// Order of two free-running 16-bit indices.
fn is_before(index: u16, other: u16) -> bool {
    let distance = other.wrapping_sub(index);
    distance != 0 && distance < 1 << 15
}
