//! What one virtio-mmio device tells its driver: the interrupt, and that its configuration changed.

use crate::irq::IrqLine;
use std::sync::atomic::{AtomicU32, Ordering};

/// InterruptStatus bit 0: the device used a buffer.
const USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: the configuration changed.
const CONFIG_CHANGE: u32 = 2;

/// Interrupt status and configuration generation of a device (virtio 1.2, section 4.2.2), and the
/// line that announces them.
#[derive(Debug)]
pub struct VirtioInterrupt {
    status: AtomicU32,
    config_generation: AtomicU32,
    line: Box<dyn IrqLine>,
}

impl VirtioInterrupt {
    /// An interrupt with nothing pending.
    #[must_use]
    pub fn new(line: Box<dyn IrqLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            config_generation: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the driver that buffers were used.
    pub fn signal_used(&self) {
        self.signal(USED_BUFFER);
    }

    /// Tells the driver to look at the configuration space, or at DEVICE_NEEDS_RESET.
    pub fn signal_config(&self) {
        self.signal(CONFIG_CHANGE);
    }

    /// Notes that the configuration space changed, without an edge.
    ///
    /// A driver that reads a 64-bit field in halves reads it again when the generation rose.
    pub fn raise_config_generation(&self) {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The ConfigGeneration register.
    #[must_use]
    pub fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// The InterruptStatus register.
    #[must_use]
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// The driver wrote `bits` to InterruptACK.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Takes over a saved generation.
    pub fn set_config_generation(&self, generation: u32) {
        self.config_generation.store(generation, Ordering::SeqCst);
    }

    /// Takes over a saved status, without an edge.
    pub fn set_status(&self, status: u32) {
        self.status
            .store(status & (USED_BUFFER | CONFIG_CHANGE), Ordering::SeqCst);
    }

    /// Sends the edge again when something is pending.
    ///
    /// An irqfd reaches the interrupt controller through a work queue, so an edge sent just before
    /// a pause can be missing from the saved controller state. A spurious edge is harmless.
    pub fn resend(&self) {
        if self.status() != 0 {
            self.raise();
        }
    }

    fn signal(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.raise();
    }

    fn raise(&self) {
        if let Err(error) = self.line.raise() {
            tracing::error!(%error, "Interrupt line cannot be raised");
        }
    }
}
