//! How a machine ended: the first reason counts, and whoever waits is woken.

use devices::power::{SystemEvent, SystemEvents};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Why a machine no longer runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest turned itself off.
    Poweroff,
    /// The guest asked for a reset.
    Reboot,
    /// A CPU met a fault while it handled a fault while it handled a fault.
    TripleFault,
    /// The guest's kernel panicked.
    Panic,
    /// The guest's memory cannot be reached any more, see [`crate::memory_fault`].
    MemoryLost,
    /// KVM or this program cannot go on.
    Internal(String),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poweroff => f.write_str("guest powered off"),
            Self::Reboot => f.write_str("guest rebooted"),
            Self::TripleFault => f.write_str("guest stopped with a triple fault"),
            Self::Panic => f.write_str("guest kernel panicked"),
            Self::MemoryLost => f.write_str("guest memory cannot be reached any more"),
            Self::Internal(text) => write!(f, "internal error: {text}"),
        }
    }
}

/// The place where the reason is kept.
#[derive(Debug)]
pub struct Outcome {
    reason: Mutex<Option<ExitReason>>,
    ended: EventFd,
}

impl Outcome {
    /// A machine that has not ended.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        let ended = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self {
            reason: Mutex::new(None),
            ended,
        })
    }

    /// Ends the machine for `reason`, unless it has ended already.
    pub fn end(&self, reason: ExitReason) {
        let mut current = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            tracing::info!(%reason, "Machine ended");
            *current = Some(reason);
            if let Err(error) = self.ended.write(1) {
                tracing::error!(%error, "Nobody hears that the machine ended");
            }
        }
    }

    /// The reason, once there is one.
    #[must_use]
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Readable once the machine has ended, and for ever after.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.ended`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ended.as_raw_fd()) }
    }
}

impl SystemEvents for Outcome {
    fn report(&self, event: SystemEvent) {
        self.end(match event {
            SystemEvent::Poweroff => ExitReason::Poweroff,
            SystemEvent::Reboot => ExitReason::Reboot,
            SystemEvent::Panic => ExitReason::Panic,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reason_counts() {
        let outcome = Outcome::new().unwrap();
        assert_eq!(outcome.reason(), None);
        outcome.report(SystemEvent::Panic);
        outcome.report(SystemEvent::Reboot);
        assert_eq!(outcome.reason(), Some(ExitReason::Panic));
    }
}
