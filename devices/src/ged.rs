//! The generic event device (ACPI 6.5, section 5.6.9): one interrupt for all ACPI events.
//!
//! The guest's AML reads the pending byte once per interrupt and notifies the devices whose bits
//! are set; reading clears it.

use crate::bus::BusDevice;
use crate::irq::IrqLine;
use serde::{Deserialize, Serialize};

/// Length of the register window, in bytes.
pub const WINDOW_LENGTH: u64 = 1;
/// Version of [`GedState`] in a state file.
pub const GED_STATE_VERSION: u16 = 1;

/// What happened. The values are bits of the pending byte and part of the guest's AML.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum AcpiEvent {
    /// A CPU was added or asked to leave.
    Cpu = 1,
    /// The VM generation id changed.
    Generation = 2,
}

/// What is saved of a [`Ged`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GedState {
    /// Events the guest has not read.
    pub pending: u8,
}

/// The pending byte and the interrupt.
#[derive(Debug)]
pub struct Ged {
    pending: u8,
    line: Box<dyn IrqLine>,
}

impl Ged {
    /// A device with nothing pending.
    #[must_use]
    pub fn new(line: Box<dyn IrqLine>) -> Self {
        Self { pending: 0, line }
    }

    /// A device as it was saved.
    #[must_use]
    pub fn restore(line: Box<dyn IrqLine>, state: GedState) -> Self {
        Self {
            pending: state.pending,
            line,
        }
    }

    /// The events the guest has not read.
    #[must_use]
    pub fn save(&self) -> GedState {
        GedState {
            pending: self.pending,
        }
    }

    /// Makes `event` pending and interrupts the guest.
    pub fn notify(&mut self, event: AcpiEvent) {
        self.pending |= event as u8;
        self.kick();
    }

    /// Interrupts again when something is pending: an edge just before a pause may be lost.
    pub fn kick(&self) {
        if self.pending != 0
            && let Err(error) = self.line.raise()
        {
            tracing::error!(%error, "ACPI event cannot be signalled");
        }
    }
}

impl BusDevice for Ged {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = std::mem::take(&mut self.pending);
        }
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::irq::testing::CountingLine;

    #[test]
    fn reading_takes_all_pending_events() {
        let line = CountingLine::default();
        let mut ged = Ged::new(Box::new(line.clone()));
        ged.notify(AcpiEvent::Generation);
        ged.notify(AcpiEvent::Cpu);
        assert_eq!(line.raised(), 2);
        let mut byte = [0];
        ged.read(0, &mut byte);
        assert_eq!(byte, [3]);
        ged.read(0, &mut byte);
        assert_eq!(byte, [0]);
    }

    #[test]
    fn saved_event_is_signalled_again() {
        let mut ged = Ged::new(Box::new(CountingLine::default()));
        ged.notify(AcpiEvent::Cpu);
        let line = CountingLine::default();
        let restored = Ged::restore(Box::new(line.clone()), ged.save());
        restored.kick();
        assert_eq!(line.raised(), 1);
        assert_eq!(restored.save(), ged.save());
    }
}
