//! Virtio: the MMIO transport, the interface a device offers to it, and the devices.
//!
//! [`mmio::MmioTransport`] owns the registers and the virtqueues of one device and is the same for
//! all of them. A device sees its queues only while it is called, as [`rings::Rings`]; so the
//! transport can save and restore every device's queues without asking the device.

pub mod balloon;
pub mod blk;
pub mod device;
pub mod interrupt;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod rings;
pub mod rng;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod vsock;
