//! Waiting for a guest to have nothing to do, so that its clones do not begin with what it has left.

use crate::Error;
use crate::kvm::KvmError;
use crate::machine::Machine;
use kvm_bindings::KVM_MP_STATE_RUNNABLE;
use std::time::{Duration, Instant};

/// How many looks in a row have to find all vCPUs halted. What a kernel does a little later, such as freeing memory
/// after an RCU grace period, keeps it ticking, and is done after so many.
const LOOKS: u32 = 4;
/// The time between two looks: a few ticks of a guest.
const BETWEEN: Duration = Duration::from_millis(10);

impl Machine {
    /// Pauses the guest when it has nothing to do, or else at the end of the time. Tells which it was.
    ///
    /// # Errors
    /// As for [`Machine::pause`], or KVM does not tell what a vCPU does.
    pub fn pause_idle(&mut self, within: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + within;
        let mut quiet = 0;
        loop {
            self.pause()?;
            quiet = if self.is_halted()? { quiet + 1 } else { 0 };
            if quiet == LOOKS {
                return Ok(true);
            }
            if deadline <= Instant::now() {
                return Ok(false);
            }
            self.resume();
            // There is no event to wait for: a vCPU halts inside the kernel.
            std::thread::sleep(BETWEEN);
        }
    }

    /// Whether no vCPU runs, in a machine that is paused.
    fn is_halted(&self) -> Result<bool, Error> {
        for vcpu in &self.vcpus {
            let state = vcpu.fd().get_mp_state();
            let state = state.map_err(KvmError::call("KVM_GET_MP_STATE"))?;
            if state.mp_state == KVM_MP_STATE_RUNNABLE {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
