//! What to do when a vCPU leaves guest code.

use super::Surroundings;
use crate::outcome::ExitReason;
use kvm_ioctls::VcpuExit;

/// How an exit was dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handled {
    /// Go on in the guest.
    Done,
    /// A signal ended the entry; nothing is left to complete.
    Interrupted,
}

/// Deals with the result of KVM_RUN; an error ends the machine.
pub(super) fn handle(
    exit: Result<VcpuExit<'_>, kvm_ioctls::Error>,
    surroundings: &Surroundings,
) -> Result<Handled, ExitReason> {
    let exit = match exit {
        Ok(exit) => exit,
        Err(error) => return interrupted(error),
    };
    match exit {
        VcpuExit::IoIn(port, data) => {
            surroundings.ports.read(u64::from(port), data);
        }
        VcpuExit::IoOut(port, data) => {
            surroundings.ports.write(u64::from(port), data);
        }
        VcpuExit::MmioRead(address, data) => {
            surroundings.mmio.read(address, data);
        }
        VcpuExit::MmioWrite(address, data) => {
            surroundings.mmio.write(address, data);
        }
        VcpuExit::Shutdown => return Err(ExitReason::TripleFault),
        VcpuExit::Intr => return Ok(Handled::Interrupted),
        other => {
            return Err(ExitReason::Internal(format!(
                "unexpected vCPU exit {other:?}"
            )));
        }
    }
    Ok(Handled::Done)
}

/// EINTR is a kick. EAGAIN comes from a CPU that waits for its start-up interrupt. EFAULT and
/// EHWPOISON are what SIGBUS is elsewhere.
fn interrupted(error: kvm_ioctls::Error) -> Result<Handled, ExitReason> {
    match error.errno() {
        libc::EINTR => Ok(Handled::Interrupted),
        libc::EAGAIN => Ok(Handled::Done),
        libc::EFAULT | libc::EHWPOISON => Err(ExitReason::MemoryLost),
        _ => Err(ExitReason::Internal(format!("KVM_RUN failed: {error}"))),
    }
}
