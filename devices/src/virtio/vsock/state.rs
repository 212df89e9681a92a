//! The saved state of a vsock device: plain, untrusted data.

use super::reset_gate::ResetGate;
use serde::{Deserialize, Serialize};

/// Version of [`VsockState`] in a state file. Raise it with any change of the structs here.
pub const VSOCK_STATE_VERSION: u16 = 1;

/// What a clone has to know. Connections are not saved: a clone's guest is told to drop them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The context id that the guest was given.
    pub guest_cid: u64,
    /// The next host port: ports that the guest may remember are not used again.
    pub next_host_port: u32,
    /// The driver was using the device, so it has connections to drop.
    pub active: bool,
    /// A reset that the guest has not dealt with.
    pub gate: ResetGate,
}
