//! What a virtio device offers to its transport.

use super::rings::{RingError, Rings};
use std::os::fd::RawFd;

/// The device number of the virtio specification, section 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceKind {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Entropy source.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket device.
    Vsock = 19,
    /// Memory device.
    Mem = 24,
}

/// The device cannot go on with what the guest gave it.
///
/// The transport answers with DEVICE_NEEDS_RESET; the VMM and the other devices are unharmed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A virtqueue is broken.
    #[error("Virtqueue {queue} is unusable")]
    Ring {
        /// Index of the queue.
        queue: u16,
        /// What is wrong with it.
        #[source]
        source: RingError,
    },
    /// The host side of the device failed.
    #[error("Back end failed")]
    Backend(#[source] std::io::Error),
}

/// A virtio device behind a transport.
///
/// The transport calls it under one lock, from a vCPU thread (configuration) or from the event
/// loop (doorbells and back end). No call may block. `activate` comes before the first
/// `queue_notified`; after `reset` the device waits for `activate` again. `backend_ready` can come
/// at any time; before `activate` it must leave the rings alone.
pub trait VirtioDevice: Send {
    /// Which device this is.
    fn kind(&self) -> DeviceKind;

    /// The device's own feature bits; the transport adds VERSION_1 and RING_EVENT_IDX.
    fn features(&self) -> u64;

    /// The maximum size of each queue, in entries; the length is the number of queues.
    fn queue_sizes(&self) -> &'static [u16];

    /// Reads device configuration space; beyond its end `data` stays zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver said DRIVER_OK, with these features.
    fn activate(&mut self, features: u64, rings: &mut Rings<'_>) -> Result<(), DeviceError>;

    /// The driver rang the doorbell of `queue`, or the machine goes on after a pause.
    fn queue_notified(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError>;

    /// A descriptor that becomes readable when the back end wants [`Self::backend_ready`].
    fn backend_fd(&self) -> Option<RawFd>;

    /// The back end's descriptor is readable. Must do a bounded amount of work.
    fn backend_ready(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError>;

    /// The driver reset the device: back to the state before `activate`.
    fn reset(&mut self);
}
