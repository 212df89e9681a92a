//! What a VM process answers on `ctl.sock`: one JSON object a line, each way.
//!
//! - [`client`]: asks, with a deadline.
//! - [`server`]: serves many clients at once; a slow one is dropped, never waited for.

pub mod client;
pub mod server;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm::GuestMemoryStats;

use crate::state::record::{End, State};
use crate::vm_process::sizing::SizeReport;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// The longest line, in bytes.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// A line from the client.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked for.
    #[serde(flatten)]
    pub request: Request,
}

/// What can be asked of a VM.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// How the VM is. Answered by [`Reply::Status`].
    Status,
    /// Stop all vCPUs. Answered by [`Reply::Done`] when they stand still.
    Pause,
    /// Let the vCPUs go on. Answered by [`Reply::Done`].
    Resume,
    /// End the VM. Answered by [`Reply::Ended`] when it has ended.
    Stop {
        /// How long the guest may take to shut down before it is killed, in milliseconds.
        timeout_ms: u64,
    },
    /// Wait for the end. Answered by [`Reply::Ended`].
    Wait,
    /// Make a template of the VM. Answered by [`Reply::Snapshotted`] when it is published.
    Snapshot {
        /// Its name.
        name: String,
        /// The directory of the store.
        store: PathBuf,
        /// How long the guest's processes may take to stop, in milliseconds; without, they are not
        /// held.
        hold_timeout_ms: Option<u64>,
    },
    /// Change the size. Answered by [`Reply::Resized`] when the guest has it, or has had its time.
    Resize {
        /// vCPUs it is to have; they stay as they are without.
        cpus: Option<u8>,
        /// Memory it is to have in all; it stays as it is without.
        memory_bytes: Option<u64>,
        /// How long the guest may take, in milliseconds.
        timeout_ms: u64,
    },
    /// What the guest does with its memory. Answered by [`Reply::GuestMemory`] when the guest has told.
    GuestMemory,
}

/// A line from the VM process.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// How the VM is.
    Status {
        /// How far it has come.
        state: State,
    },
    /// Done.
    Done,
    /// The VM has ended.
    Ended {
        /// How.
        end: End,
    },
    /// The template is published.
    Snapshotted {
        /// What is known of it.
        template: Snapshotted,
    },
    /// How far a change of size got.
    Resized {
        /// Reached or not.
        size: SizeReport,
    },
    /// What the guest does with its memory.
    GuestMemory {
        /// None when it cannot be asked, or does not answer.
        memory: Option<GuestMemoryStats>,
    },
    /// Not done.
    Error {
        /// Why not.
        message: String,
    },
}

/// A template that was made of a running VM.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Snapshotted {
    /// The template.
    pub name: String,
    /// Its directory.
    pub path: PathBuf,
    /// The guest's memory.
    pub memory_bytes: u64,
    /// What of it takes room on the disk: all that it does not share.
    pub allocated_bytes: u64,
    /// What it shares with the templates it comes from.
    #[serde(default)]
    pub shared_bytes: u64,
    /// How many files the memory is in.
    #[serde(default)]
    pub layers: usize,
    /// Why the memory of the VM's template was copied, when it could not be shared.
    pub copied_because: Option<String>,
    /// How long the guest's processes were held, by its clock; `None` when they were not, or it did not
    /// tell.
    pub held_ms: Option<f64>,
    /// How long the VM stood still.
    pub paused_ms: f64,
    /// From the pause until the template was published.
    pub total_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_documented_form() {
        let asked = Asked {
            version: VERSION,
            request: Request::Stop { timeout_ms: 5000 },
        };
        let line = serde_json::to_string(&asked).unwrap();
        assert_eq!(line, r#"{"version":1,"request":"stop","timeout_ms":5000}"#);
        assert_eq!(serde_json::from_str::<Asked>(&line).unwrap(), asked);
        let reply = Reply::Status {
            state: State::Running,
        };
        let line = serde_json::to_string(&reply).unwrap();
        assert_eq!(line, r#"{"reply":"status","state":"running"}"#);
    }
}
