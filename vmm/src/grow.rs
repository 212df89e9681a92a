//! Changing a machine's size while it lives: CPUs through the hot-plug controller, memory through
//! the memory device.
//!
//! The guest does its part in its own time. These functions put in place what it will use, tell it,
//! and return; [`Machine::presence`] and [`Machine::memory_request`] are what to wait with.

use crate::Error;
use crate::boot;
use crate::config::VcpuCountError;
use crate::kvm::{cpuid, tsc, vcpu_state};
use crate::machine::Machine;
use crate::memory_request::MemoryRequest;
use crate::size::MemorySize;
use crate::vcpu::{NewVcpu, Vcpu, VcpuId};
use devices::cpu_hotplug::Presence;

/// A size that the machine cannot have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeLimit {
    /// The first CPU always stays.
    #[error("A machine has one vCPU at least")]
    NoCpus,
    /// More CPUs than the machine's tables have.
    #[error("{asked} vCPUs are more than the {max} that this machine can have (--max-cpus)")]
    Cpus {
        /// Asked for.
        asked: u8,
        /// Possible.
        max: u8,
    },
    /// More memory than is reserved.
    #[error("{asked} of memory are more than the {max} that this machine can have (--max-mem)")]
    Memory {
        /// Asked for.
        asked: MemorySize,
        /// Possible.
        max: MemorySize,
    },
    /// Less memory than the guest has booted with.
    #[error("{asked} of memory are less than the {boot} that the guest has booted with (--mem)")]
    BootMemory {
        /// Asked for.
        asked: MemorySize,
        /// RAM at boot.
        boot: MemorySize,
    },
}

impl Machine {
    /// Which CPUs are there.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// The memory that the guest was asked to have, and how much of it it has; `None` for a machine that cannot grow.
    #[must_use]
    pub fn memory_request(&self) -> Option<MemoryRequest> {
        self.platform.memory_request()
    }

    /// Whether the machine can have as many CPUs, and as much memory.
    ///
    /// # Errors
    /// Names the limit.
    pub fn check_size(
        &self,
        cpus: Option<u8>,
        memory: Option<MemorySize>,
    ) -> Result<(), SizeLimit> {
        cpus.map_or(Ok(()), |count| self.check_vcpu_count(count))?;
        memory.map_or(Ok(()), |size| self.check_memory_size(size))
    }

    fn check_vcpu_count(&self, asked: u8) -> Result<(), SizeLimit> {
        let max = self.cpus.max();
        match asked {
            0 => Err(SizeLimit::NoCpus),
            _ if asked > max => Err(SizeLimit::Cpus { asked, max }),
            _ => Ok(()),
        }
    }

    fn check_memory_size(&self, asked: MemorySize) -> Result<(), SizeLimit> {
        let (boot, max) = (self.memory_size, self.max_memory_size);
        if asked > max {
            return Err(SizeLimit::Memory { asked, max });
        }
        if asked < boot {
            return Err(SizeLimit::BootMemory { asked, boot });
        }
        Ok(())
    }

    /// Makes the guest have `count` CPUs. Those to be added are there when this returns, and those to
    /// be removed go when the guest gives them up.
    ///
    /// # Errors
    /// More than the machine can have, none at all, or KVM makes no vCPU.
    pub fn set_vcpu_count(&mut self, count: u8) -> Result<(), Error> {
        self.check_vcpu_count(count)?;
        let present = self.presence.present();
        if usize::from(count) > present.len() {
            self.add_vcpus(count)?;
        } else {
            let leaving = present.iter().skip(count.into());
            leaving.for_each(|&cpu| self.presence.ask_to_remove(cpu));
        }
        if usize::from(count) != present.len() {
            self.platform.announce_cpus();
        }
        Ok(())
    }

    /// Makes the guest have `size` of memory in all, in its own time.
    ///
    /// # Errors
    /// More than the machine can have, less than it has booted with, or KVM does not take the memory.
    pub fn set_memory_size(&mut self, size: MemorySize) -> Result<(), Error> {
        self.check_memory_size(size)?;
        let added = size.bytes() - self.memory_size.bytes();
        let Some(region) = &mut self.region else {
            return Ok(());
        };
        let vm = &mut self.vm;
        self.platform
            .request_memory(added, |usable| region.grant(vm, usable))
    }

    /// Adds CPUs until `count` are there.
    ///
    /// The vCPUs stand still meanwhile: the counter of a new one is aligned with that of the first,
    /// and KVM answers for a vCPU only while it does not run.
    fn add_vcpus(&mut self, count: u8) -> Result<(), Error> {
        let was_running = !self.is_paused();
        self.pause()?;
        let added = self.add_while_paused(count);
        if was_running {
            self.resume();
        }
        added
    }

    fn add_while_paused(&mut self, count: u8) -> Result<(), Error> {
        while self.presence.present().len() < usize::from(count) {
            let Some(id) = self.presence.first_absent() else {
                break;
            };
            // One that was removed is still there for KVM, halted; the guest starts it anew.
            if usize::from(id) >= self.vcpus.len() {
                let vcpu = self.make_vcpu(id)?;
                self.vcpus.push(vcpu);
            }
            self.presence.insert(id);
        }
        Ok(())
    }

    /// A CPU as after power-on: it waits for the guest's start-up interrupt.
    ///
    /// Its CPUID is that of the first but for the ids, so that all CPUs of a clone agree even when
    /// this host has more features than the template's.
    fn make_vcpu(&self, id: u8) -> Result<Vcpu, Error> {
        let fd = self.vm.create_vcpu(id)?;
        let first = self.vcpus.first().ok_or(VcpuCountError::Range(0))?;
        let cpuid = cpuid::for_vcpu(first.cpuid(), id, self.cpus.max());
        vcpu_state::set_cpuid(&fd, &cpuid)?;
        boot::prepare_cpu(&fd)?;
        tsc::follow(&first.fd(), &fd)?;
        let vcpu = NewVcpu::new(fd, cpuid);
        Ok(Vcpu::spawn(VcpuId(id), vcpu, self.surroundings.clone())?)
    }
}
