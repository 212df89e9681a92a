//! How the guest turns itself off or on again: the ACPI sleep and reset registers and the
//! keyboard controller's reset line.

use crate::bus::BusDevice;
use std::sync::Arc;

/// First I/O port of the ACPI registers.
pub const ACPI_PORT: u16 = 0x600;
/// Ports the ACPI registers take: sleep control, sleep status, reset.
pub const ACPI_PORTS: u16 = 3;
/// Sleep control register (ACPI 6.5, section 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = ACPI_PORT;
/// Sleep status register.
pub const SLEEP_STATUS_PORT: u16 = ACPI_PORT + 1;
/// Reset register.
pub const RESET_PORT: u16 = ACPI_PORT + 2;
/// What the guest writes to the reset register.
pub const RESET_VALUE: u8 = 1;
/// The sleep type that `_S5` names.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Command port of the keyboard controller.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// Keyboard controller command that pulses the CPU's reset pin.
const PULSE_RESET: u8 = 0xfe;

/// Something the guest did that ends or disturbs the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemEvent {
    /// The guest turned itself off.
    Poweroff,
    /// The guest asked for a reset.
    Reboot,
    /// The guest's kernel panicked.
    Panic,
}

/// Hears what devices report about the machine as a whole. Must not block.
pub trait SystemEvents: Send + Sync + std::fmt::Debug {
    /// Called on a vCPU thread.
    fn report(&self, event: SystemEvent);
}

/// The ACPI sleep control, sleep status and reset registers.
#[derive(Debug)]
pub struct AcpiPower {
    events: Arc<dyn SystemEvents>,
}

impl AcpiPower {
    /// Registers that report to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn SystemEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for AcpiPower {
    /// Sleep status reads 0: the machine never woke from a sleep.
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        let port = u64::from(ACPI_PORT) + offset;
        if port == u64::from(SLEEP_CONTROL_PORT) && value & SLEEP_ENABLE != 0 {
            if (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF {
                self.events.report(SystemEvent::Poweroff);
            }
        } else if port == u64::from(RESET_PORT) && value == RESET_VALUE {
            self.events.report(SystemEvent::Reboot);
        }
    }
}

/// The one part of a keyboard controller that matters without a keyboard.
#[derive(Debug)]
pub struct KeyboardReset {
    events: Arc<dyn SystemEvents>,
}

impl KeyboardReset {
    /// A command port that reports to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn SystemEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for KeyboardReset {
    /// Status 0: the input buffer is empty, a command may be written.
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            self.events.report(SystemEvent::Reboot);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Events that are kept for the test to look at.

    use super::{SystemEvent, SystemEvents};
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    pub struct Recorder(pub Mutex<Vec<SystemEvent>>);

    impl SystemEvents for Recorder {
        fn report(&self, event: SystemEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Recorder;
    use super::*;

    fn written(offset: u64, data: &[u8]) -> Vec<SystemEvent> {
        let events = Arc::new(Recorder::default());
        AcpiPower::new(events.clone()).write(offset, data);
        events.0.lock().unwrap().clone()
    }

    #[test]
    fn sleep_type_five_with_enable_turns_the_machine_off() {
        assert_eq!(written(0, &[0x34]), [SystemEvent::Poweroff]);
    }

    #[test]
    fn other_sleep_values_do_nothing() {
        assert_eq!(written(0, &[0x14]), []);
        assert_eq!(written(0, &[0x20]), []);
        assert_eq!(written(0, &[0x34, 0]), []);
        assert_eq!(written(1, &[0x34]), []);
    }

    #[test]
    fn reset_register_reboots() {
        assert_eq!(written(2, &[1]), [SystemEvent::Reboot]);
        assert_eq!(written(2, &[0]), []);
    }

    #[test]
    fn keyboard_controller_pulses_reset() {
        let events = Arc::new(Recorder::default());
        let mut port = KeyboardReset::new(events.clone());
        port.write(0, &[0xd1]);
        assert_eq!(*events.0.lock().unwrap(), []);
        port.write(0, &[0xfe]);
        assert_eq!(*events.0.lock().unwrap(), [SystemEvent::Reboot]);
    }
}
