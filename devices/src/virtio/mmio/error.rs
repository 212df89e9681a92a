//! Why a transport cannot be made.

/// Why a transport cannot be built from a saved state, or at all.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No doorbell descriptor.
    #[error("Cannot create a doorbell eventfd")]
    EventFd(#[source] std::io::Error),
    /// The device offers an impossible queue size.
    #[error("Queue {queue} of virtio device {kind} has an invalid size")]
    QueueSize {
        /// Virtio device number.
        kind: u32,
        /// Index of the queue.
        queue: usize,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// The saved state has other queues than the device.
    #[error("Saved virtio device {kind} has {found} queues, expected {expected}")]
    QueueCount {
        /// Virtio device number.
        kind: u32,
        /// Queues in the state.
        found: usize,
        /// Queues of the device.
        expected: usize,
    },
    /// A saved queue does not fit the device or the guest's memory.
    #[error("Saved queue {queue} of virtio device {kind} is outside guest memory or too large")]
    QueueInvalid {
        /// Virtio device number.
        kind: u32,
        /// Index of the queue.
        queue: usize,
    },
    /// The guest accepted features that this device does not have.
    #[error("Saved virtio device {kind} uses features {found:#x}, offered are {offered:#x}")]
    Features {
        /// Virtio device number.
        kind: u32,
        /// Features in the state.
        found: u64,
        /// Features of the device.
        offered: u64,
    },
    /// No driver can have brought the device there.
    #[error("Saved virtio device {kind} has the impossible status {found:#x}")]
    Status {
        /// Virtio device number.
        kind: u32,
        /// Status in the state.
        found: u32,
    },
}
