//! What host and guest agent say to each other: messages, services, ports and framing.
//!
//! - [`agent`], [`health`]: the part of Kata Containers' agent interface that we speak.
//! - [`guest`]: minivmm's own service.
//! - [`client`]: calls with deadlines over one connected socket.
//! - [`frame`]: ttrpc's wire format, used by the client and by the agent's server.
//! - [`stdio`], [`forward`]: the lines that open a stream of a command, and one to a guest's port.
//!
//! Messages and service traits are generated from `proto/*.proto` with ttrpc's generator.

pub mod client;
mod error;
pub mod forward;
pub mod frame;
#[rustfmt::skip]
mod generated;
pub mod stdio;

pub use client::AgentClient;
pub use error::CallError;
pub use generated::{agent, agent_ttrpc, guest, guest_ttrpc, health, health_ttrpc};

/// Vsock port of the agent's ttrpc services, the same as Kata's.
pub const AGENT_PORT: u32 = 1024;
/// Vsock port on which the agent takes the streams of commands.
pub const STDIO_PORT: u32 = 1025;
/// Vsock port on which the agent takes streams to ports and sockets of the guest's own.
pub const FORWARD_PORT: u32 = 1026;
/// Vsock port on the host to which the agent connects once it is ready.
pub const READY_PORT: u32 = 1024;
/// What the agent writes on that connection.
pub const READY_LINE: &[u8] = b"ready\n";
/// The host's vsock context id, as every guest sees it.
pub const HOST_CID: u32 = 2;
/// The least entropy that `Adopt` accepts, in bytes.
pub const MIN_ENTROPY_BYTES: usize = 64;
