//! Making a clone of a template. [`PreparedClone::new`] and [`PreparedClone::into_machine`] are the list of
//! its steps; [`Machine::restore`] does both at once.

use crate::Error;
use crate::config::{CloneConfig, VcpuCounts};
use crate::freeze::{
    MACHINE_SECTION, MACHINE_STATE_VERSION, MachineState, VM_SECTION, vcpu_section,
};
use crate::hotplug_region::{HotplugRange, HotplugRegion};
use crate::kvm::irqchip::{VM_STATE_VERSION, VmState};
use crate::kvm::vcpu_state::{self, Counter, VCPU_STATE_VERSION, VcpuState};
use crate::kvm::{EarlyVm, KvmVm, compat, cpuid, tsc};
use crate::layout;
use crate::machine::{Machine, Parts};
use crate::memory::{self, AddressSpace, MemoryBacking};
use crate::outcome::Outcome;
use crate::platform::{Platform, PlatformState};
use crate::prefault::{copy_working_set, map_ahead};
use crate::size::MemorySize;
use crate::stages::{Stage, StageTimer};
use crate::vcpu::NewVcpu;
use devices::virtio::mem::BLOCK_SIZE;
use devices::virtio::mmio::SharedMemory;
use kvm_bindings::{kvm_clock_data, kvm_cpuid_entry2};
use snapshot::{MemoryLayers, StateFile, WorkingSet};
use std::collections::BTreeSet;
use std::sync::Arc;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

/// Everything that a state file holds.
#[derive(Debug)]
struct SavedMachine {
    cpus: VcpuCounts,
    memory: MemorySize,
    max_memory: MemorySize,
    /// Bytes of added memory in the memory file, behind the RAM.
    granted: u64,
    vcpus: Vec<VcpuState>,
    vm: VmState,
    platform: PlatformState,
}

/// A clone that is made up to the point where time begins to pass for it and where it becomes somebody:
/// memory, KVM's VM and the vCPUs with their registers. Nothing of it says which VM it is going to be, and
/// it may wait as long as it likes.
#[derive(Debug)]
pub struct PreparedClone {
    saved: SavedMachine,
    vcpus: Vec<NewVcpu>,
    vm: KvmVm,
    region: Option<HotplugRegion>,
    memory: SharedMemory,
    /// Keeps guest memory mapped for as long as KVM can reach it.
    space: AddressSpace,
    stages: Vec<Stage>,
}

impl Machine {
    /// Makes a clone from a state file and memory files, paused where the template was.
    ///
    /// The memory is mapped copy-on-write; the clone never writes to its files, and they must not
    /// change for as long as the clone lives. Of the pages in `working_set` it has its own from the start.
    ///
    /// # Errors
    /// The files do not belong together or to this program, this host lacks a CPU feature of the
    /// template's, or KVM refuses.
    pub fn restore(
        state: &StateFile,
        template_memory: &Arc<MemoryLayers>,
        working_set: &WorkingSet,
        config: &CloneConfig,
    ) -> Result<Self, Error> {
        let vm = EarlyVm::begin();
        Self::restore_in(vm, state, template_memory, working_set, config)
    }

    /// As [`Machine::restore`], in a VM that was begun before the files were opened.
    ///
    /// # Errors
    /// As there.
    pub fn restore_in(
        vm: EarlyVm,
        state: &StateFile,
        template_memory: &Arc<MemoryLayers>,
        working_set: &WorkingSet,
        config: &CloneConfig,
    ) -> Result<Self, Error> {
        let prepared = PreparedClone::new(state, template_memory, working_set, vm)?;
        let before = prepared.stages.clone();
        let mut machine = prepared.into_machine(config)?;
        machine.stages.splice(..0, before);
        Ok(machine)
    }
}

impl PreparedClone {
    /// The first part of [`Machine::restore`].
    ///
    /// # Errors
    /// As there.
    pub fn new(
        state: &StateFile,
        template_memory: &Arc<MemoryLayers>,
        working_set: &WorkingSet,
        vm: EarlyVm,
    ) -> Result<Self, Error> {
        let mut timer = StageTimer::start();
        let saved = SavedMachine::read(state)?;
        timer.finish("state");

        let backing = MemoryBacking::CopyOnWrite(template_memory.clone());
        backing.check_length(saved.memory.bytes().saturating_add(saved.granted))?;
        let ram = memory::map(saved.memory, &backing)?;
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::clone(&ram));
        timer.finish("memory");
        copy_working_set(&ram, saved.memory, working_set);
        timer.finish("working set");

        let mut vm = KvmVm::new(vm.finish()?, &ram)?;
        let region = restore_region(&mut vm, &saved, &memory, template_memory)?;
        check_cpu(&cpuid::host(vm.kvm())?, &saved)?;
        timer.finish("vm");

        let vcpus = restore_vcpus(&vm, &saved.vcpus)?;
        timer.finish("vcpus");
        Ok(Self {
            saved,
            memory,
            space: ram.space(),
            vm,
            region,
            vcpus,
            stages: timer.into_stages(),
        })
    }

    /// For a clone that waits: also maps for its guest what clones touch until they are ready. It takes as long as
    /// the guest would lose with it.
    ///
    /// # Errors
    /// KVM refuses to put the first vCPU where it was.
    pub fn map_ahead(mut self, working_set: &WorkingSet) -> Result<Self, Error> {
        let mut timer = StageTimer::start();
        if let (Some(state), false) = (self.saved.vcpus.first(), self.vcpus.is_empty()) {
            let memory = self.memory.memory().into_inner();
            let (vm, size) = (&self.vm, self.saved.memory);
            let first = self.vcpus.remove(0);
            let first = map_ahead(vm, first, state, &memory, size, working_set)?;
            self.vcpus.insert(0, first);
        }
        timer.finish("mapped ahead");
        self.stages.extend(timer.into_stages());
        Ok(self)
    }

    /// The second part: the clone gets its identity, its clocks and its threads, and stands where the
    /// template was.
    ///
    /// # Errors
    /// As for [`Machine::restore`].
    pub fn into_machine(self, config: &CloneConfig) -> Result<Machine, Error> {
        let mut timer = StageTimer::start();
        let Self {
            saved,
            memory,
            space,
            vm,
            region,
            vcpus,
            stages: _,
        } = self;

        // The interrupt controllers come after the vCPUs and before any device, whose interrupt
        // would be overwritten.
        let counters = start_timed(&vcpus, &saved)?;
        let clock = vm.restore(&saved.vm)?;
        start_clocks(&vcpus, &saved, &counters, &clock)?;
        let first = vcpus.first().filter(|_| tsc::is_stable(&clock));
        let begun = first.and_then(|vcpu| tsc::Moment::now(&vcpu.fd));
        timer.finish("clocks");

        let platform = Platform::restore(
            &vm,
            &memory,
            config,
            &saved.platform,
            saved.cpus,
            region.as_ref(),
        )?;
        platform.announce_clone(&memory, config)?;
        timer.finish("devices");

        let outcome = Arc::new(Outcome::new().map_err(Error::EventFd)?);
        let (cpus, memory_size, max_memory_size) = (saved.cpus, saved.memory, saved.max_memory);
        let parts = Parts {
            vm,
            memory,
            space,
            vcpus,
            platform,
            outcome,
            cpus,
            memory_size,
            max_memory_size,
            region,
            is_clone: true,
        };
        let mut machine = Machine::assemble(parts)?;
        timer.finish("threads");
        machine.stages = timer.into_stages();
        machine.begun = begun;
        Ok(machine)
    }
}

impl SavedMachine {
    fn read(file: &StateFile) -> Result<Self, Error> {
        let machine: MachineState = file.section(
            MACHINE_SECTION,
            MACHINE_STATE_VERSION..=MACHINE_STATE_VERSION,
        )?;
        if machine.abi != layout::ABI {
            return Err(Error::Abi {
                found: machine.abi,
                expected: layout::ABI,
            });
        }
        let read_vcpu =
            |id| file.section(&vcpu_section(id), VCPU_STATE_VERSION..=VCPU_STATE_VERSION);
        let memory = MemorySize::from_bytes(machine.memory_bytes)?;
        let max_memory = MemorySize::from_bytes(machine.max_memory_bytes)?;
        check_granted(memory, max_memory, machine.granted_bytes)?;
        Ok(Self {
            cpus: VcpuCounts::new(machine.cpus, machine.max_cpus)?,
            memory,
            max_memory,
            granted: machine.granted_bytes,
            vcpus: (0..machine.cpus).map(read_vcpu).collect::<Result<_, _>>()?,
            vm: file.section(VM_SECTION, VM_STATE_VERSION..=VM_STATE_VERSION)?,
            platform: PlatformState::read(file)?,
        })
    }
}

/// What was granted is whole blocks, and no more than what could be added.
fn check_granted(memory: MemorySize, max_memory: MemorySize, found: u64) -> Result<(), Error> {
    let limit = max_memory.bytes().checked_sub(memory.bytes());
    let fits = |limit| found <= limit && found.is_multiple_of(BLOCK_SIZE);
    if limit.is_some_and(fits) {
        return Ok(());
    }
    Err(Error::Granted {
        found,
        memory,
        max_memory,
    })
}

/// The region for added memory, with what the template had of it.
fn restore_region(
    vm: &mut KvmVm,
    saved: &SavedMachine,
    memory: &SharedMemory,
    template_memory: &MemoryLayers,
) -> Result<Option<HotplugRegion>, Error> {
    let Some(range) = HotplugRange::of(saved.memory, saved.max_memory) else {
        return Ok(None);
    };
    let mut region = HotplugRegion::reserve(range, memory.clone())?;
    if saved.granted > 0 {
        region.load(template_memory, saved.memory.bytes(), saved.granted)?;
        region.grant(vm, saved.granted)?;
    }
    Ok(Some(region))
}

fn check_cpu(host: &[kvm_cpuid_entry2], saved: &SavedMachine) -> Result<(), Error> {
    let vcpus = saved.vcpus.iter();
    let missing = vcpus.flat_map(|vcpu| compat::missing_features(&vcpu.cpuid, host));
    let missing: BTreeSet<_> = missing.collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::CpuFeatures(missing.into_iter().collect()))
    }
}

fn restore_vcpus(vm: &KvmVm, states: &[VcpuState]) -> Result<Vec<NewVcpu>, Error> {
    let make = |(id, state): (u8, &VcpuState)| {
        let fd = vm.create_vcpu(id)?;
        vcpu_state::restore_timeless(vm, &fd, state)?;
        Ok(NewVcpu::new(fd, state.cpuid.clone()))
    };
    (0..).zip(states).map(make).collect()
}

/// Time begins to pass for the vCPUs.
fn start_timed(vcpus: &[NewVcpu], saved: &SavedMachine) -> Result<Vec<Counter>, Error> {
    let vcpus_and_states = vcpus.iter().zip(&saved.vcpus);
    let counters = vcpus_and_states
        .map(|(vcpu, state)| vcpu_state::restore_timed(&vcpu.fd, state))
        .collect::<Result<_, _>>()?;
    // KVM relates its clock to the counters only when they agree.
    tsc::align(vcpus.iter().map(|vcpu| &vcpu.fd))?;
    Ok(counters)
}

/// Counters first, then the timers that are compared with them.
fn start_clocks(
    vcpus: &[NewVcpu],
    saved: &SavedMachine,
    counters: &[Counter],
    now: &kvm_clock_data,
) -> Result<(), Error> {
    for ((vcpu, state), counter) in vcpus.iter().zip(&saved.vcpus).zip(counters) {
        vcpu_state::continue_tsc(&vcpu.fd, state, *counter, saved.vm.clock(), now)?;
    }
    for (vcpu, state) in vcpus.iter().zip(&saved.vcpus) {
        vcpu_state::arm_timer(&vcpu.fd, state)?;
        vcpu_state::announce_pause(&vcpu.fd);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_memory_that_no_machine_has_is_refused() {
        let mib = |mib| MemorySize::from_mib(mib).unwrap();
        let check = |max, found| check_granted(mib(64), mib(max), found);
        for (max, found) in [(64, 0), (128, 0), (128, 2 << 20), (128, 64 << 20)] {
            assert!(check(max, found).is_ok(), "{found} of {max} MiB");
        }
        for (max, found) in [
            (62, 0),
            (64, 2 << 20),
            (128, 4096),
            (128, 66 << 20),
            (128, u64::MAX),
        ] {
            let error = check(max, found).unwrap_err();
            assert!(matches!(error, Error::Granted { .. }), "{error}");
        }
    }
}
