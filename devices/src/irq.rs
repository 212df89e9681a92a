//! How a device interrupts the guest.

use std::io;

/// One edge-triggered interrupt line.
///
/// Implemented by an irqfd in the VMM and by a counter in tests. Raising is asynchronous: the
/// guest sees the interrupt some time after the call returns.
pub trait IrqLine: Send + Sync + std::fmt::Debug {
    /// Sends one edge.
    fn raise(&self) -> io::Result<()>;
}

impl IrqLine for vmm_sys_util::eventfd::EventFd {
    fn raise(&self) -> io::Result<()> {
        self.write(1)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A line that counts its edges.

    use super::{IrqLine, io};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts how often it was raised; clones count together.
    #[derive(Debug, Clone, Default)]
    pub struct CountingLine(Arc<AtomicUsize>);

    impl CountingLine {
        pub fn raised(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl IrqLine for CountingLine {
        fn raise(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }
}
