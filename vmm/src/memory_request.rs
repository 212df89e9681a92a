//! The size of memory that a machine wants its guest to have, for whoever waits for it.

use crate::platform::lock;
use devices::virtio::mem::{Mem, PluggedHandle};
use devices::virtio::mmio::MmioTransport;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The guest's driver tries again by itself after 5 s, then 10 s, and so on up to 5 minutes
/// (`VIRTIO_MEM_RETRY_TIMER_MIN_MS` in Linux), and at once when it is told of a change.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request to the memory device. It needs no access to the machine, so that waiting keeps nobody
/// from using that.
#[derive(Clone, Debug)]
pub struct MemoryRequest {
    device: Arc<Mutex<MmioTransport<Mem>>>,
    plugged: PluggedHandle,
}

impl MemoryRequest {
    pub(crate) fn new(device: Arc<Mutex<MmioTransport<Mem>>>) -> Self {
        let plugged = lock(&device).device().plugged();
        Self { device, plugged }
    }

    /// How much memory beyond what it has booted with the guest has now, in bytes.
    #[must_use]
    pub fn plugged_bytes(&self) -> u64 {
        self.plugged.bytes()
    }

    /// Waits until the guest has exactly `bytes` of it; false when it has not at the deadline.
    ///
    /// A guest that makes no progress is told again: its kernel may have met a page that was in
    /// use just then, and would let much time go by before it looks again.
    #[must_use]
    pub fn wait_for(&self, bytes: u64, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut before = self.plugged.bytes();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.plugged.wait_for(bytes, left.min(PATIENCE)) {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            let now = self.plugged.bytes();
            if now == before {
                self.repeat();
            }
            before = now;
        }
    }

    /// Makes the driver look at the size that is wanted again.
    fn repeat(&self) {
        let Ok(()) = lock(&self.device).change_config(|_| Ok::<_, Infallible>(()));
    }
}
