//! A stream of a command, from the host's promise to attach it to its end.

use std::os::fd::OwnedFd;

use crate::exec::pump::Pump;

/// A stream of the command, while the host attaches and after.
#[derive(Debug)]
pub enum Channel {
    /// The command does not have it.
    None,
    /// The host is to attach it.
    Expected,
    /// The connection, and what came on it before the command started.
    Attached(OwnedFd, Vec<u8>),
    /// The command runs.
    Open(Pump),
    /// Everything has been moved.
    Finished,
    /// The host has closed it before the end.
    Lost,
}

impl Channel {
    /// One that the host is to attach, if the command has it.
    pub fn expected(wanted: bool) -> Self {
        if wanted { Self::Expected } else { Self::None }
    }

    /// Whether bytes are moved on it.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Its connection when it is attached, which leaves it finished.
    pub fn take(&mut self) -> Option<(OwnedFd, Vec<u8>)> {
        match std::mem::replace(self, Self::Finished) {
            Self::Attached(connection, early) => Some((connection, early)),
            other => {
                *self = other;
                None
            }
        }
    }
}
