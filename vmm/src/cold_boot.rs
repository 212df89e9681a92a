//! Booting a machine from a kernel.

use crate::Error;
use crate::boot;
use crate::config::BootConfig;
use crate::hotplug_region::HotplugRegion;
use crate::kvm::{BareVm, KvmVm, cpuid, tsc, vcpu_state};
use crate::machine::{Machine, Parts};
use crate::memory::{self, MemoryBacking};
use crate::outcome::Outcome;
use crate::platform::Platform;
use crate::stages::StageTimer;
use crate::vcpu::NewVcpu;
use kvm_bindings::kvm_cpuid_entry2;
use std::sync::Arc;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

impl Machine {
    /// Makes a machine whose first vCPU is at the kernel's entry. It starts paused.
    ///
    /// # Errors
    /// A file is not what it should be, something does not fit, or KVM refuses.
    pub fn boot(config: &BootConfig, backing: MemoryBacking) -> Result<Self, Error> {
        let mut timer = StageTimer::start();
        backing.check_length(config.memory.bytes())?;
        let ram = memory::map(config.memory, &backing)?;
        let vm = KvmVm::new(BareVm::create()?, &ram)?;
        let host = cpuid::host(vm.kvm())?;
        check_address_bits(config, &host)?;
        timer.finish("vm");

        let entry = boot::load(&ram, config)?;
        timer.finish("kernel");

        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::clone(&ram));
        let outcome = Arc::new(Outcome::new().map_err(Error::EventFd)?);
        let region = config.hotplug_range();
        let region = region.map(|range| HotplugRegion::reserve(range, memory.clone()));
        let region = region.transpose()?;
        let platform = Platform::new(&vm, &memory, config, region.as_ref())?;
        timer.finish("devices");

        let vcpus = make_vcpus(&vm, config, &host)?;
        if let Some(first) = vcpus.first() {
            boot::start_at(&ram, &first.fd, entry)?;
        }
        timer.finish("vcpus");

        let (cpus, memory_size, max_memory_size) = (config.cpus, config.memory, config.max_memory);
        let parts = Parts {
            vm,
            memory,
            space: ram.space(),
            vcpus,
            platform,
            outcome,
            cpus,
            memory_size,
            max_memory_size,
            region,
            is_clone: false,
        };
        let mut machine = Self::assemble(parts)?;
        timer.finish("threads");
        machine.stages = timer.into_stages();
        Ok(machine)
    }
}

/// All memory the machine may ever have needs addresses that its CPUs can form.
fn check_address_bits(config: &BootConfig, host: &[kvm_cpuid_entry2]) -> Result<(), Error> {
    let bits = cpuid::physical_address_bits(host);
    let end = config
        .hotplug_range()
        .map_or(0, |range| range.start.0 + range.length);
    if end >> bits == 0 {
        Ok(())
    } else {
        Err(Error::AddressBits { end, bits })
    }
}

fn make_vcpus(
    vm: &KvmVm,
    config: &BootConfig,
    host: &[kvm_cpuid_entry2],
) -> Result<Vec<NewVcpu>, Error> {
    let make = |id| {
        let fd = vm.create_vcpu(id)?;
        let cpuid = cpuid::for_vcpu(host, id, config.cpus.max());
        vcpu_state::set_cpuid(&fd, &cpuid)?;
        boot::prepare_cpu(&fd)?;
        Ok(NewVcpu::new(fd, cpuid))
    };
    let vcpus = (0..config.cpus.boot())
        .map(make)
        .collect::<Result<Vec<_>, Error>>()?;
    tsc::align(vcpus.iter().map(|vcpu| &vcpu.fd))?;
    Ok(vcpus)
}
