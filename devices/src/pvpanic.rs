//! pvpanic: the port a guest kernel writes to when it panics.
//!
//! The interface is QEMU's: one byte-wide port, announced through ACPI as `QEMU0001`. Reading it
//! gives the events that the host understands.

use crate::bus::BusDevice;
use crate::power::{SystemEvent, SystemEvents};
use std::sync::Arc;

/// The I/O port.
pub const PORT: u16 = 0x505;

/// The guest's kernel panicked.
const PANICKED: u8 = 1;

/// The panic port.
#[derive(Debug)]
pub struct PvPanic {
    events: Arc<dyn SystemEvents>,
}

impl PvPanic {
    /// A port that reports to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn SystemEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = PANICKED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let [byte] = data
            && byte & PANICKED != 0
        {
            self.events.report(SystemEvent::Panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::testing::Recorder;

    #[test]
    fn panic_bit_is_offered_and_reported() {
        let events = Arc::new(Recorder::default());
        let mut port = PvPanic::new(events.clone());
        let mut byte = [0];
        port.read(0, &mut byte);
        assert_eq!(byte, [1]);
        port.write(0, &[2]);
        assert_eq!(*events.0.lock().unwrap(), []);
        port.write(0, &[1]);
        assert_eq!(*events.0.lock().unwrap(), [SystemEvent::Panic]);
    }
}
