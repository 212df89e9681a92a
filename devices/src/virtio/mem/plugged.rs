//! How the owner of a memory device waits for the guest to plug or unplug memory.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Tells how much memory the guest has plugged. Clones belong to the same device.
///
/// It needs no access to the device, so that waiting keeps nobody from using that.
#[derive(Debug, Clone)]
pub struct PluggedHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes: Mutex<u64>,
    changed: Condvar,
}

impl PluggedHandle {
    pub(super) fn new(bytes: u64) -> Self {
        Self(Arc::new(Shared {
            bytes: Mutex::new(bytes),
            changed: Condvar::new(),
        }))
    }

    /// How much memory is plugged, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        *self.lock()
    }

    /// Waits until exactly `bytes` bytes are plugged; false when they are not at the deadline.
    #[must_use]
    pub fn wait_for(&self, bytes: u64, deadline: Duration) -> bool {
        let differs = |plugged: &mut u64| *plugged != bytes;
        let waited = self
            .0
            .changed
            .wait_timeout_while(self.lock(), deadline, differs);
        let (plugged, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *plugged == bytes
    }

    /// Tells those who wait that this much is plugged now.
    pub(super) fn report(&self, bytes: u64) {
        let mut plugged = self.lock();
        if *plugged != bytes {
            *plugged = bytes;
            self.0.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_waited_for() {
        let device = PluggedHandle::new(4);
        let owner = device.clone();
        assert!(owner.wait_for(4, Duration::ZERO));
        assert!(!owner.wait_for(8, Duration::from_millis(1)));
        let waiter = std::thread::spawn(move || owner.wait_for(8, Duration::from_secs(60)));
        device.report(6);
        device.report(8);
        assert!(waiter.join().unwrap());
        assert_eq!(device.bytes(), 8);
    }
}
