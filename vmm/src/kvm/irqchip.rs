//! The VM-wide state that KVM keeps: interrupt controllers and clock.
//!
//! There is no 8254 timer: Linux as a KVM guest takes its clock from kvmclock and its ticks from
//! the local APIC, in deadline mode, and an 8254 costs every clone the registration of two more
//! I/O windows, each a grace period on kernels before 6.18.

use super::{KvmError, KvmVm};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

/// Version of [`VmState`] in a state file.
pub const VM_STATE_VERSION: u16 = 1;

const CONTROLLERS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Saved state of the interrupt controllers and kvmclock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    clock: kvm_clock_data,
    controllers: [kvm_irqchip; 3],
}

/// Makes both 8259s and the I/O APIC. vCPUs made afterwards have a local APIC.
pub(super) fn create(vm: &VmFd) -> Result<(), KvmError> {
    vm.create_irq_chip()
        .map_err(KvmError::call("KVM_CREATE_IRQCHIP"))
}

impl VmState {
    /// kvmclock at the save.
    #[must_use]
    pub fn clock(&self) -> &kvm_clock_data {
        &self.clock
    }
}

impl KvmVm {
    /// Reads the VM-wide state. Call after vCPUs and devices were saved: saving them can still
    /// raise an interrupt, which has to be in here.
    ///
    /// # Errors
    /// A KVM call fails.
    pub fn save(&self) -> Result<VmState, KvmError> {
        let fd = self.fd();
        let clock = fd.get_clock().map_err(KvmError::call("KVM_GET_CLOCK"))?;
        let mut controllers = [kvm_irqchip::default(); 3];
        for (controller, chip_id) in controllers.iter_mut().zip(CONTROLLERS) {
            controller.chip_id = chip_id;
            fd.get_irqchip(controller)
                .map_err(KvmError::call("KVM_GET_IRQCHIP"))?;
        }
        Ok(VmState { clock, controllers })
    }

    /// Sets the VM-wide state. Call after the vCPUs were restored and before any device raises an
    /// interrupt, which this would overwrite.
    ///
    /// kvmclock goes on from the saved value, so that the guest's CLOCK_MONOTONIC does not jump
    /// by the template's age.
    ///
    /// Returns kvmclock as it is now; the vCPUs' counters have to follow it
    /// ([`super::vcpu_state::continue_tsc`]).
    ///
    /// # Errors
    /// A KVM call fails.
    pub fn restore(&self, state: &VmState) -> Result<kvm_clock_data, KvmError> {
        let fd = self.fd();
        let clock = kvm_clock_data {
            clock: state.clock.clock,
            ..kvm_clock_data::default()
        };
        fd.set_clock(&clock)
            .map_err(KvmError::call("KVM_SET_CLOCK"))?;
        for controller in &state.controllers {
            fd.set_irqchip(controller)
                .map_err(KvmError::call("KVM_SET_IRQCHIP"))?;
        }
        fd.get_clock().map_err(KvmError::call("KVM_GET_CLOCK"))
    }
}
