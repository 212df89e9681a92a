//! The CPU hot-plug controller: which CPUs are there, and which the guest is to take or to give up.
//!
//! The registers are this program's own; the guest knows them through the AML of its DSDT, which
//! needs no lock around them, as no register selects another.
//!
//! | offset | access | meaning |
//! |---|---|---|
//! | 0x000 | 32-bit, read | the first CPU with an event, all ones when there is none |
//! | 0x100 + n | 8-bit, read | flags of CPU n, see [`flags`] |
//! | 0x100 + n | 8-bit, write | acknowledges the events whose flags are set; [`flags::EJECT`] takes the CPU out |

use crate::bus::BusDevice;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Length of the register window, in bytes.
pub const WINDOW_LENGTH: u64 = 0x200;
/// Offset of the register that names the first CPU with an event.
pub const NEXT_EVENT_OFFSET: u64 = 0;
/// Offset of the flags of CPU 0.
pub const FLAGS_OFFSET: u64 = 0x100;
/// What the first register says when no CPU has an event.
pub const NO_EVENT: u32 = u32::MAX;
/// Version of [`CpuControllerState`] in a state file.
pub const CPU_CONTROLLER_STATE_VERSION: u16 = 1;

/// Bits of a CPU's flags, which are part of the guest's AML.
pub mod flags {
    /// The CPU is there.
    pub const PRESENT: u8 = 1;
    /// The guest is to take it into use.
    pub const INSERT: u8 = 1 << 1;
    /// The guest is to give it up.
    pub const REMOVE: u8 = 1 << 2;
    /// Written by the guest: it has given the CPU up.
    pub const EJECT: u8 = 1 << 3;
}

/// What is saved of a [`CpuController`]: the flags of every possible CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuControllerState {
    /// [`flags`] by CPU.
    pub flags: Vec<u8>,
}

/// The saved flags do not belong to this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuControllerError {
    /// Another number of possible CPUs.
    #[error("CPU controller has the flags of {found} CPUs, expected {expected}")]
    Count {
        /// In the state.
        found: usize,
        /// Possible CPUs of the machine.
        expected: u8,
    },
    /// A CPU is there that was never made.
    #[error("CPU {cpu} is marked as present, but only {made} CPUs were ever made")]
    NeverMade {
        /// Which CPU.
        cpu: u8,
        /// How many there are.
        made: u8,
    },
    /// Flags that no controller has.
    #[error("CPU {cpu} has the flags {found:#x}, which do not go together")]
    Flags {
        /// Which CPU.
        cpu: usize,
        /// Its flags.
        found: u8,
    },
}

/// Which CPUs are there. Clones share it with the owner of the machine, who waits for the guest.
#[derive(Debug, Clone)]
pub struct Presence {
    shared: Arc<(Mutex<Vec<u8>>, Condvar)>,
}

/// The registers.
#[derive(Debug)]
pub struct CpuController {
    presence: Presence,
}

impl CpuController {
    /// A controller of `possible` CPUs, of which the first `present` are there.
    #[must_use]
    pub fn new(present: u8, possible: u8) -> Self {
        let flag = |cpu| if cpu < present { flags::PRESENT } else { 0 };
        Self::with((0..possible).map(flag).collect())
    }

    /// The controller as it was saved, of a machine with `possible` CPUs, of which the first `made`
    /// exist. Some of these may have been taken out.
    ///
    /// # Errors
    /// The state is that of another machine, or none at all.
    pub fn restore(
        state: CpuControllerState,
        made: u8,
        possible: u8,
    ) -> Result<Self, CpuControllerError> {
        let found = state.flags.len();
        if found != usize::from(possible) {
            return Err(CpuControllerError::Count {
                found,
                expected: possible,
            });
        }
        let mut all = state.flags.iter().copied().enumerate();
        if let Some((cpu, found)) = all.find(|&(cpu, found)| !is_consistent(cpu, found)) {
            return Err(CpuControllerError::Flags { cpu, found });
        }
        let controller = Self::with(state.flags);
        match controller.presence.present().last() {
            Some(&cpu) if cpu >= made => Err(CpuControllerError::NeverMade { cpu, made }),
            _ => Ok(controller),
        }
    }

    /// The flags of all CPUs.
    #[must_use]
    pub fn save(&self) -> CpuControllerState {
        CpuControllerState {
            flags: self.presence.lock().clone(),
        }
    }

    /// What the owner of the machine looks at.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    fn with(flags: Vec<u8>) -> Self {
        let shared = Arc::new((Mutex::new(flags), Condvar::new()));
        Self {
            presence: Presence { shared },
        }
    }
}

/// Whether a controller could have left a CPU like this. The first is always there.
fn is_consistent(cpu: usize, found: u8) -> bool {
    let present = found & flags::PRESENT != 0;
    let known = found & !(flags::PRESENT | flags::INSERT | flags::REMOVE) == 0;
    known && (present || (found == 0 && cpu != 0))
}

impl Presence {
    /// The CPUs that are there, in order.
    #[must_use]
    pub fn present(&self) -> Vec<u8> {
        let flags = self.lock();
        let present = |(_, found): &(u8, &u8)| *found & flags::PRESENT != 0;
        let cpus = (0..).zip(flags.iter()).filter(present);
        cpus.map(|(cpu, _)| cpu).collect()
    }

    /// The first CPU that is possible but not there.
    #[must_use]
    pub fn first_absent(&self) -> Option<u8> {
        let flags = self.lock();
        let mut cpus = (0..).zip(flags.iter());
        cpus.find(|(_, found)| **found & flags::PRESENT == 0)
            .map(|(cpu, _)| cpu)
    }

    /// Puts a CPU in. The guest learns of it by the event that follows.
    pub fn insert(&self, cpu: u8) {
        if let Some(found) = self.lock().get_mut(usize::from(cpu)) {
            *found = flags::PRESENT | flags::INSERT;
        }
    }

    /// Asks the guest to give up a CPU. The first one never goes.
    pub fn ask_to_remove(&self, cpu: u8) {
        if cpu == 0 {
            return;
        }
        if let Some(found) = self.lock().get_mut(usize::from(cpu))
            && *found & flags::PRESENT != 0
        {
            *found = (*found & !flags::INSERT) | flags::REMOVE;
        }
    }

    /// Waits until at most `count` CPUs are there; false when the deadline passed.
    #[must_use]
    pub fn wait_for_at_most(&self, count: usize, deadline: Duration) -> bool {
        let (_, changed) = &*self.shared;
        let too_many = |flags: &mut Vec<u8>| {
            let present = flags.iter().filter(|found| **found & flags::PRESENT != 0);
            present.count() > count
        };
        let waited = changed.wait_timeout_while(self.lock(), deadline, too_many);
        let (_flags, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }

    fn next_event(&self) -> u32 {
        let pending = |(_, found): &(u32, &u8)| *found & (flags::INSERT | flags::REMOVE) != 0;
        let flags = self.lock();
        let next = (0..).zip(flags.iter()).find(pending);
        next.map_or(NO_EVENT, |(cpu, _)| cpu)
    }

    fn flags_of(&self, cpu: usize) -> u8 {
        self.lock().get(cpu).copied().unwrap_or(0)
    }

    /// The guest's write. An eject that nobody asked for is obeyed too: the guest can stop using a
    /// CPU whenever it likes. It cannot eject the first.
    fn write_flags(&self, cpu: usize, written: u8) {
        let mut flags = self.lock();
        let Some(found) = flags.get_mut(cpu) else {
            return;
        };
        *found &= !(written & (flags::INSERT | flags::REMOVE));
        if written & flags::EJECT != 0 && cpu != 0 {
            *found = 0;
            self.shared.1.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for CpuController {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (NEXT_EVENT_OFFSET, data @ [_, _, _, _]) => {
                data.copy_from_slice(&self.presence.next_event().to_le_bytes());
            }
            (offset, [byte]) => *byte = cpu_at(offset).map_or(0, |cpu| self.presence.flags_of(cpu)),
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(cpu), [byte]) = (cpu_at(offset), data) {
            self.presence.write_flags(cpu, *byte);
        }
    }
}

/// The CPU whose flags are at `offset`.
fn cpu_at(offset: u64) -> Option<usize> {
    usize::try_from(offset.checked_sub(FLAGS_OFFSET)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(controller: &mut CpuController) -> u32 {
        let mut word = [0; 4];
        controller.read(NEXT_EVENT_OFFSET, &mut word);
        u32::from_le_bytes(word)
    }

    fn flags_of(controller: &mut CpuController, cpu: u64) -> u8 {
        let mut byte = [0];
        controller.read(FLAGS_OFFSET + cpu, &mut byte);
        byte[0]
    }

    #[test]
    fn guest_takes_what_is_inserted() {
        let mut controller = CpuController::new(1, 4);
        assert_eq!(next(&mut controller), NO_EVENT);
        let presence = controller.presence().clone();
        assert_eq!(presence.first_absent(), Some(1));
        presence.insert(1);
        presence.insert(2);
        assert_eq!(next(&mut controller), 1);
        assert_eq!(flags_of(&mut controller, 1), flags::PRESENT | flags::INSERT);
        controller.write(FLAGS_OFFSET + 1, &[flags::INSERT]);
        assert_eq!(flags_of(&mut controller, 1), flags::PRESENT);
        assert_eq!(next(&mut controller), 2);
        assert_eq!(presence.present(), [0, 1, 2]);
    }

    #[test]
    fn guest_gives_up_what_it_is_asked_for() {
        let mut controller = CpuController::new(3, 3);
        let presence = controller.presence().clone();
        presence.ask_to_remove(2);
        assert_eq!(next(&mut controller), 2);
        assert!(!presence.wait_for_at_most(2, Duration::ZERO));
        controller.write(FLAGS_OFFSET + 2, &[flags::REMOVE]);
        assert_eq!(next(&mut controller), NO_EVENT);
        controller.write(FLAGS_OFFSET + 2, &[flags::EJECT]);
        assert!(presence.wait_for_at_most(2, Duration::ZERO));
        assert_eq!(presence.present(), [0, 1]);
        assert_eq!(presence.first_absent(), Some(2));
    }

    #[test]
    fn first_cpu_stays_whatever_the_guest_and_its_owner_do() {
        let mut controller = CpuController::new(2, 2);
        controller.presence().ask_to_remove(0);
        controller.write(FLAGS_OFFSET, &[0xff]);
        assert_eq!(controller.presence().present(), [0, 1]);
        assert_eq!(next(&mut controller), NO_EVENT);
    }

    #[test]
    fn accesses_beside_the_registers_do_nothing() {
        let mut controller = CpuController::new(1, 2);
        for offset in [1, 4, 0xff, FLAGS_OFFSET + 2, WINDOW_LENGTH - 1, u64::MAX] {
            controller.write(offset, &[0xff]);
            let mut byte = [0];
            controller.read(offset, &mut byte);
            assert_eq!(byte, [0], "{offset:#x}");
        }
        let mut wide = [0; 8];
        controller.read(NEXT_EVENT_OFFSET, &mut wide);
        controller.write(FLAGS_OFFSET, &wide);
        assert_eq!(controller.presence().present(), [0]);
    }

    #[test]
    fn saved_controller_goes_on_with_its_events() {
        let controller = CpuController::new(1, 4);
        controller.presence().insert(3);
        let mut restored = CpuController::restore(controller.save(), 4, 4).unwrap();
        assert_eq!(next(&mut restored), 3);
        assert_eq!(restored.save(), controller.save());
    }

    #[test]
    fn flags_of_another_machine_are_refused() {
        let restore = |flags: &[u8], possible| {
            let flags = flags.to_vec();
            CpuController::restore(CpuControllerState { flags }, 2, possible).map(drop)
        };
        assert_eq!(restore(&[1, 0], 2), Ok(()));
        assert_eq!(restore(&[1, 1, 0], 3), Ok(()));
        let never_made = CpuControllerError::NeverMade { cpu: 2, made: 2 };
        assert_eq!(restore(&[1, 0, 1], 3), Err(never_made));
        assert!(matches!(
            restore(&[1, 0], 3),
            Err(CpuControllerError::Count { found: 2, .. })
        ));
        for wrong in [[0, 1], [1, 2], [1, 4], [1, 0x11]] {
            assert!(
                matches!(restore(&wrong, 2), Err(CpuControllerError::Flags { .. })),
                "{wrong:?}"
            );
        }
    }
}
