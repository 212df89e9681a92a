//! Running something else on a vCPU before its guest.

use super::KvmError;
use super::vcpu_state::VcpuState;
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_regs};
use kvm_ioctls::{VcpuExit, VcpuFd};

/// RFLAGS with nothing set: no interrupts, and strings are read upwards.
const RFLAGS: u64 = 2;

/// Why a detour did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DetourError {
    /// KVM refuses a call.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The vCPU left guest code in another way than it should have.
    #[error("vCPU left its detour by {0}")]
    Exit(String),
}

/// Runs code of the guest's kernel mode from `start`, until it writes to the port `done`. The vCPU has the guest's
/// state before, and not after: [`super::vcpu_state::restore_registers`] is to follow.
///
/// The code runs without interrupts, and an exception is a triple fault: the guest's own handlers never run.
///
/// # Errors
/// A KVM call fails, or the code does anything else.
pub fn run(
    vcpu: &mut VcpuFd,
    state: &VcpuState,
    start: &kvm_regs,
    done: u16,
) -> Result<(), DetourError> {
    let mp_state = kvm_mp_state {
        mp_state: KVM_MP_STATE_RUNNABLE,
    };
    vcpu.set_mp_state(mp_state)
        .map_err(KvmError::call("KVM_SET_MP_STATE"))?;
    let mut sregs = *state.sregs();
    sregs.idt.limit = 0;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rflags: RFLAGS,
        ..*start
    };
    vcpu.set_regs(&regs)
        .map_err(KvmError::call("KVM_SET_REGS"))?;
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, _)) if port == done => break,
            Ok(exit) => return Err(DetourError::Exit(format!("{exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(KvmError::call("KVM_RUN")(error).into()),
        }
    }
    complete_access(vcpu)
}

/// Otherwise KVM would complete the write to the port when the guest runs.
fn complete_access(vcpu: &mut VcpuFd) -> Result<(), DetourError> {
    vcpu.set_kvm_immediate_exit(1);
    let left = match vcpu.run() {
        Err(error) if error.errno() == libc::EINTR => Ok(()),
        Err(error) => Err(KvmError::call("KVM_RUN")(error).into()),
        Ok(exit) => Err(DetourError::Exit(format!("{exit:?}"))),
    };
    vcpu.set_kvm_immediate_exit(0);
    left
}
