//! Saving a machine: everything but its memory, as the bytes of a state file.

use crate::Error;
use crate::hotplug_region::HotplugRegion;
use crate::kvm::irqchip::VM_STATE_VERSION;
use crate::kvm::msrs;
use crate::kvm::vcpu_state::{self, VCPU_STATE_VERSION, VcpuState};
use crate::layout;
use crate::machine::Machine;
use crate::vcpu::Vcpu;
use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};
use snapshot::StateWriter;

/// Section that says what kind of machine the others belong to.
pub(crate) const MACHINE_SECTION: &str = "machine";
pub(crate) const MACHINE_STATE_VERSION: u16 = 2;
/// Section of the VM-wide KVM state.
pub(crate) const VM_SECTION: &str = "vm";

/// The frame of a saved machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// [`layout::ABI`] of the program that made the machine.
    pub abi: u32,
    /// vCPUs that were ever made, and so have a section.
    pub cpus: u8,
    pub max_cpus: u8,
    /// RAM at boot, at the start of the memory file.
    pub memory_bytes: u64,
    pub max_memory_bytes: u64,
    /// Bytes of the region for added memory that follow in the memory file.
    pub granted_bytes: u64,
}

/// Section of one vCPU.
pub(crate) fn vcpu_section(id: u8) -> String {
    format!("vcpu-{id}")
}

/// A saved machine, to be published with its memory file.
#[derive(Debug)]
pub struct FrozenMachine {
    /// The bytes of the state file.
    pub state: Vec<u8>,
    /// The CPUID that the guest sees on its first vCPU.
    pub cpuid: Vec<kvm_cpuid_entry2>,
}

impl Machine {
    /// Pauses the machine and saves it.
    ///
    /// Devices first, then vCPUs, then the interrupt controllers: each can still raise an
    /// interrupt in the next while it is saved.
    ///
    /// # Errors
    /// The machine does not stop, or a KVM call fails.
    pub fn freeze(&mut self) -> Result<FrozenMachine, Error> {
        self.pause()?;
        let mut writer = StateWriter::new();
        let machine = MachineState {
            abi: layout::ABI,
            cpus: u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX),
            max_cpus: self.cpus.max(),
            memory_bytes: self.memory_size.bytes(),
            max_memory_bytes: self.max_memory_size.bytes(),
            granted_bytes: self.region.as_ref().map_or(0, HotplugRegion::granted),
        };
        writer.section(MACHINE_SECTION, MACHINE_STATE_VERSION, &machine)?;
        self.platform.save(&mut writer)?;
        let vcpus = self.save_vcpus()?;
        for (id, vcpu) in (0..).zip(&vcpus) {
            writer.section(&vcpu_section(id), VCPU_STATE_VERSION, vcpu)?;
        }
        writer.section(VM_SECTION, VM_STATE_VERSION, &self.vm.save()?)?;
        let cpuid = vcpus
            .into_iter()
            .next()
            .map(|vcpu| vcpu.cpuid)
            .unwrap_or_default();
        Ok(FrozenMachine {
            state: writer.finish(),
            cpuid,
        })
    }

    fn save_vcpus(&self) -> Result<Vec<VcpuState>, Error> {
        let indices = msrs::indices(self.vm.kvm())?;
        let save = |vcpu: &Vcpu| vcpu_state::save(&self.vm, &vcpu.fd(), vcpu.cpuid(), &indices);
        Ok(self.vcpus.iter().map(save).collect::<Result<_, _>>()?)
    }
}
