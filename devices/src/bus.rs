//! Address decoding: which device answers at which port or MMIO address.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// A device that answers reads and writes within its own window.
///
/// Called by a vCPU thread with the offset from the start of the window. The guest chooses offset
/// and length; anything a device does not understand reads as zeroes and is ignored when written.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset`.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes what the guest wrote at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as a bus and its other owners share it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Two devices claim the same address.
#[derive(Debug, thiserror::Error)]
#[error("Bus window {base:#x}+{length:#x} overlaps the window {other:#x}+{other_length:#x}")]
pub struct Overlap {
    base: u64,
    length: u64,
    other: u64,
    other_length: u64,
}

struct Window {
    length: u64,
    device: SharedDevice,
}

/// One address space: the port I/O space or the MMIO space.
#[derive(Default)]
pub struct Bus {
    windows: BTreeMap<u64, Window>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.windows.iter().map(|(base, w)| (base, w.length)))
            .finish()
    }
}

impl Bus {
    /// An empty address space.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `device` the addresses `base..base + length`.
    ///
    /// # Errors
    /// [`Overlap`] when another device has one of these addresses.
    pub fn insert(&mut self, base: u64, length: u64, device: SharedDevice) -> Result<(), Overlap> {
        let end = base.saturating_add(length);
        let clash = self
            .windows
            .range(..end)
            .next_back()
            .filter(|(b, w)| **b + w.length > base);
        if let Some((&other, window)) = clash {
            return Err(Overlap {
                base,
                length,
                other,
                other_length: window.length,
            });
        }
        self.windows.insert(base, Window { length, device });
        Ok(())
    }

    /// Reads from the device at `address`; false, with `data` all ones as on real hardware, when
    /// there is none.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((offset, device)) = self.find(address, data.len()) else {
            data.fill(0xff);
            return false;
        };
        data.fill(0);
        device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
        true
    }

    /// Writes to the device at `address`; false when there is none.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(address, data.len()) else {
            return false;
        };
        device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
        true
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &SharedDevice)> {
        let (base, window) = self.windows.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(length as u64)?;
        (end <= window.length).then_some((offset, &window.device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Scratch {
        written: Vec<(u64, Vec<u8>)>,
    }

    impl BusDevice for Scratch {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn access_reaches_the_device_with_its_offset() {
        let mut bus = Bus::new();
        let device = Arc::new(Mutex::new(Scratch::default()));
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        let mut data = [9u8; 2];
        assert!(bus.read(0x1003, &mut data));
        assert_eq!(data, [3, 0]);
        assert!(bus.write(0x100e, &[1, 2]));
        assert_eq!(device.lock().unwrap().written, [(0xe, vec![1, 2])]);
    }

    #[test]
    fn access_outside_or_across_the_end_is_not_answered() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, Arc::new(Mutex::new(Scratch::default())))
            .unwrap();
        let mut data = [0u8; 4];
        assert!(!bus.read(0xfff, &mut data));
        assert_eq!(data, [0xff; 4]);
        assert!(!bus.read(0x100d, &mut data));
        assert!(!bus.write(0x1010, &[0]));
        assert!(!bus.write(u64::MAX, &[0, 0]));
    }

    #[test]
    fn overlapping_windows_are_refused() {
        let mut bus = Bus::new();
        let device = Arc::new(Mutex::new(Scratch::default()));
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        assert!(bus.insert(0x100f, 1, device.clone()).is_err());
        assert!(bus.insert(0xff0, 0x11, device.clone()).is_err());
        assert!(bus.insert(0xff0, 0x10, device.clone()).is_ok());
        assert!(bus.insert(0x1010, 0x10, device).is_ok());
    }
}
