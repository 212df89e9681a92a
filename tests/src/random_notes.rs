//! The random numbers that `guest-tool random-log` has read, and when.

use std::collections::BTreeSet;

use crate::vm::Vm;

/// What a process of one VM has noted.
#[derive(Debug)]
pub struct RandomNotes {
    /// The monotonic clock before the number was read, and the number.
    notes: Vec<(u64, u64)>,
}

impl RandomNotes {
    /// Ends the process and takes its notes.
    ///
    /// # Panics
    /// There is no such process in the VM.
    #[must_use]
    #[track_caller]
    pub fn of(vm: &Vm<'_>) -> Self {
        let dump = vm.exec(["guest-tool", "random-dump"]);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let notes = dump.ok().stdout().chunks_exact(16);
        Self {
            notes: notes
                .map(|note| (word(&note[..8]), word(&note[8..])))
                .collect(),
        }
    }

    /// When the VM was frozen that both are clones of. They have the same past until then, and from
    /// then on their clocks are not the same.
    ///
    /// # Panics
    /// They have no past in common.
    #[must_use]
    #[track_caller]
    pub fn frozen_at(&self, other: &Self) -> u64 {
        let mine: BTreeSet<_> = self.notes.iter().collect();
        let common = other.notes.iter().filter(|note| mine.contains(note));
        common.map(|note| note.0).max().unwrap()
    }

    /// The numbers that were read after that time.
    #[must_use]
    pub fn since(&self, time: u64) -> BTreeSet<u64> {
        let new = self.notes.iter().filter(|note| note.0 > time);
        new.map(|note| note.1).collect()
    }
}
