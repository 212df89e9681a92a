//! How a command ended, and how that is told.

use std::time::Duration;

use proto::guest::WaitResponse;
use rustix::process::WaitStatus;
use ttrpc::Code;

use crate::error::Refusal;

/// How long the host may take to attach all streams.
pub const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

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

impl Outcome {
    /// The answer to `Wait`.
    pub fn answer(&self) -> Result<WaitResponse, Refusal> {
        let (code, signal) = match self {
            Self::Exited(code) => (*code, 0),
            Self::Killed(signal) => (0, *signal),
            Self::NeverAttached => {
                let seconds = ATTACH_TIMEOUT.as_secs();
                let text = format!("Not all streams were attached within {seconds} s");
                return Err(Refusal::new(Code::DEADLINE_EXCEEDED, text));
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
