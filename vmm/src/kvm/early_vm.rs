//! KVM's VM, made in a thread of its own while the template is read.

use super::KvmError;
use super::vm::BareVm;
use crate::one_cpu::let_begin;
use std::sync::mpsc;
use std::thread::JoinHandle;

/// A VM in the making.
///
/// Kernels up to 6.12 start a thread for each VM in `KVM_CREATE_VM` and move it into the caller's cgroups, which
/// takes an RCU grace period: 5 to 30 ms in which the caller sleeps. So the sooner it begins the better.
#[derive(Debug)]
pub struct EarlyVm {
    /// Without one it is made when it is asked for.
    thread: Option<JoinHandle<Result<BareVm, KvmError>>>,
}

impl EarlyVm {
    /// Begins.
    #[must_use]
    pub fn begin() -> Self {
        let (sign, begun) = mpsc::channel();
        let create = move || {
            // Nobody may wait for it.
            sign.send(()).unwrap_or_default();
            BareVm::create()
        };
        let thread = devices::thread("create-vm").spawn(create).ok();
        // A thread that is gone, or was never there, has nothing to begin.
        let_begin(|| begun.recv().unwrap_or_default());
        Self { thread }
    }

    /// Waits for it.
    ///
    /// # Errors
    /// As for [`BareVm::create`].
    pub(crate) fn finish(self) -> Result<BareVm, KvmError> {
        // A thread that panicked has told why; the call itself is made again.
        match self.thread.map(JoinHandle::join) {
            Some(Ok(made)) => made,
            Some(Err(_)) | None => BareVm::create(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_vm_with_and_without_a_thread() {
        for early in [EarlyVm::begin(), EarlyVm { thread: None }] {
            let vm = early.finish().unwrap();
            assert!(vm.has(kvm_ioctls::Cap::Irqchip));
        }
    }
}
