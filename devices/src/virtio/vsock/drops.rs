//! Counts what the device had to drop; logs the first of each kind.

use std::fmt::Display;

/// Why a packet or a buffer was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropKind {
    /// A TX chain that holds no packet.
    MalformedTx,
    /// An RX chain that cannot take a packet.
    MalformedRx,
    /// A packet from a context id that is not the guest's.
    ForeignSource,
}

/// How often each kind happened.
#[derive(Debug, Default)]
pub(super) struct Drops([u64; 3]);

impl Drops {
    /// Counts one, and logs it when it is the first of its kind: a guest must not fill the log.
    pub(super) fn count(&mut self, kind: DropKind, detail: &dyn Display) {
        let count = &mut self.0[kind as usize];
        *count = count.saturating_add(1);
        if *count == 1 {
            tracing::warn!(?kind, %detail, "Vsock packet dropped; more of this kind are only counted");
        }
    }

    /// All drops together.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().copied().fold(0, u64::saturating_add)
    }
}
