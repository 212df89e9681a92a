//! The saved state of a virtqueue and of a virtio-mmio transport: plain, untrusted data.

use serde::{Deserialize, Serialize};

/// Version of [`TransportState`] in a state file. Raise it with any change of the structs here.
pub const TRANSPORT_STATE_VERSION: u16 = 1;

/// One virtqueue: where its rings are and how far the device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Largest size the device offers, in entries.
    pub max_size: u16,
    /// Size the driver chose, in entries.
    pub size: u16,
    /// The driver finished the set-up.
    pub ready: bool,
    /// RING_EVENT_IDX is in use.
    pub event_idx: bool,
    /// Next entry of the available ring that the device takes.
    pub next_avail: u16,
    /// Next entry of the used ring that the device fills.
    pub next_used: u16,
    /// Guest physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest physical address of the available ring.
    pub available: u64,
    /// Guest physical address of the used ring.
    pub used: u64,
}

impl From<virtio_queue::QueueState> for QueueState {
    fn from(state: virtio_queue::QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl From<QueueState> for virtio_queue::QueueState {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx,
            size: state.size,
            ready: state.ready,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
        }
    }
}

/// The registers of a transport and all its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// DeviceFeaturesSel.
    pub device_features_select: u32,
    /// DriverFeaturesSel.
    pub driver_features_select: u32,
    /// Features the driver accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_select: u32,
    /// Status.
    pub status: u32,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues, in order.
    pub queues: Vec<QueueState>,
}
