//! How a command ended, and how that is told.

use std::time::Duration;

use proto::guest::WaitResponse;
use rustix::process::WaitStatus;
use ttrpc::Code;

use crate::error::Refusal;

/// How long the host may take to attach all streams, each over a connection of its own. A host that is busy takes its
/// time; one that has died is to leave nothing behind.
pub const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);

/// How a command ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It exited by itself.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
    /// It never ran: not all of its streams were attached.
    NeverAttached,
}

/// Why a command never ran whose streams were not attached.
pub fn never_attached() -> String {
    let seconds = ATTACH_TIMEOUT.as_secs();
    format!("Not all streams were attached within {seconds} s")
}

impl Outcome {
    /// The answer to `Wait`.
    pub fn answer(&self) -> Result<WaitResponse, Refusal> {
        let (code, signal) = match self {
            Self::Exited(code) => (*code, 0),
            Self::Killed(signal) => (0, *signal),
            Self::NeverAttached => {
                return Err(Refusal::new(Code::DEADLINE_EXCEEDED, never_attached()));
            }
        };
        Ok(WaitResponse {
            code,
            signal,
            ..Default::default()
        })
    }

    /// What the kernel says.
    pub fn of(status: WaitStatus) -> Self {
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Self::Exited(code),
            (None, signal) => Self::Killed(signal.unwrap_or_default()),
        }
    }
}
