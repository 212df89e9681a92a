//! A running or paused machine: what its owner can do with it.

use crate::Error;
use crate::balloon_part::StatsRequest;
use crate::config::{DiskConfig, VcpuCounts};
use crate::event_loop::EventLoop;
use crate::hotplug_region::HotplugRegion;
use crate::kvm::KvmVm;
use crate::kvm::tsc::Moment;
use crate::memory::AddressSpace;
use crate::outcome::{ExitReason, Outcome};
use crate::platform::Platform;
use crate::size::MemorySize;
use crate::stages::Stage;
use crate::vcpu::{NewVcpu, Surroundings, Vcpu, VcpuId};
use devices::console::Console;
use devices::cpu_hotplug::Presence;
use devices::virtio::mmio::SharedMemory;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// A virtual machine. Dropping it ends it.
///
/// The fields are dropped in this order: no vCPU and no device runs any more when the VM and then
/// its memory go.
#[derive(Debug)]
pub struct Machine {
    pub(crate) vcpus: Vec<Vcpu>,
    event_loop: EventLoop,
    pub(crate) platform: Platform,
    outcome: Arc<Outcome>,
    pub(crate) cpus: VcpuCounts,
    pub(crate) memory_size: MemorySize,
    pub(crate) max_memory_size: MemorySize,
    pub(crate) presence: Presence,
    pub(crate) surroundings: Arc<Surroundings>,
    pub(crate) stages: Vec<Stage>,
    paused: bool,
    pub(crate) vm: KvmVm,
    pub(crate) region: Option<HotplugRegion>,
    pub(crate) memory: SharedMemory,
    /// Keeps guest memory mapped for as long as KVM can reach it.
    pub(crate) space: AddressSpace,
    pub(crate) is_clone: bool,
    pub(crate) begun: Option<Moment>,
}

/// The parts of a machine whose state is complete but which has no threads yet.
pub(crate) struct Parts {
    pub vm: KvmVm,
    pub memory: SharedMemory,
    pub space: AddressSpace,
    pub vcpus: Vec<NewVcpu>,
    pub platform: Platform,
    pub outcome: Arc<Outcome>,
    pub cpus: VcpuCounts,
    pub memory_size: MemorySize,
    pub max_memory_size: MemorySize,
    pub region: Option<HotplugRegion>,
    /// Its memory started with a template's.
    pub is_clone: bool,
}

impl Machine {
    /// Gives the parts their threads, all parked.
    pub(crate) fn assemble(parts: Parts) -> Result<Self, Error> {
        crate::vcpu::install_handler().map_err(Error::Signal)?;
        let event_loop = EventLoop::spawn(parts.platform.subscribers())?;
        let (ports, mmio) = parts.platform.buses(&parts.outcome)?;
        let outcome = parts.outcome.clone();
        let surroundings = Arc::new(Surroundings {
            ports,
            mmio,
            outcome,
        });
        let vcpus = (0..)
            .zip(parts.vcpus)
            .map(|(id, vcpu)| Vcpu::spawn(VcpuId(id), vcpu, surroundings.clone()))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            vcpus,
            event_loop,
            presence: parts.platform.presence(),
            platform: parts.platform,
            outcome: parts.outcome,
            cpus: parts.cpus,
            memory_size: parts.memory_size,
            max_memory_size: parts.max_memory_size,
            surroundings,
            stages: Vec::new(),
            paused: true,
            vm: parts.vm,
            region: parts.region,
            memory: parts.memory,
            space: parts.space,
            is_clone: parts.is_clone,
            begun: None,
        })
    }

    /// Lets the guest run. Does nothing when it does.
    pub fn resume(&mut self) {
        if !self.paused {
            return;
        }
        self.platform.kick();
        self.event_loop.run();
        self.vcpus.iter().for_each(Vcpu::run);
        self.paused = false;
    }

    /// Stops the guest; when this returns, neither a vCPU nor a device changes its memory or its
    /// disks. Does nothing when it is paused already.
    ///
    /// # Errors
    /// A vCPU or a device does not stop in time.
    pub fn pause(&mut self) -> Result<(), Error> {
        if !self.paused {
            self.vcpus.iter().for_each(Vcpu::park);
            self.vcpus.iter().try_for_each(Vcpu::wait_parked)?;
            self.event_loop.park()?;
            self.paused = true;
        }
        // A machine whose storage does not answer stands still, but is not to be saved.
        Ok(self.platform.settle()?)
    }

    /// How the guest is asked about its memory; `None` when there is no balloon device.
    #[must_use]
    pub fn stats_request(&self) -> Option<StatsRequest> {
        self.platform.stats_request()
    }

    /// What is on the disks, in the order of their slots. Only a paused machine's do not change.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskConfig> {
        self.platform.disks()
    }

    /// Whether [`Self::pause`] was the last of the two.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Connects to a port of the guest, without a socket file and without a handshake. What is
    /// written waits until the guest accepts; when it does not, the stream ends.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.platform.vsock_handle().connect(port)
    }

    /// Waits until the guest has no connection to the host left; false when the deadline passed.
    ///
    /// To be called before [`Self::freeze`]: each clone's guest has to clean up after what is
    /// open in the template.
    #[must_use]
    pub fn wait_for_no_connections(&self, deadline: Duration) -> bool {
        self.platform
            .vsock_handle()
            .wait_for_no_connections(deadline)
    }

    /// Output of the guest's serial console.
    #[must_use]
    pub fn console(&self) -> &Arc<Console> {
        self.platform.console()
    }

    /// A handle to type on the guest's serial console.
    #[must_use]
    pub fn console_input(&self) -> ConsoleInput {
        ConsoleInput(self.platform.serial().clone())
    }

    /// vCPUs at boot and at most.
    #[must_use]
    pub fn cpus(&self) -> VcpuCounts {
        self.cpus
    }

    /// RAM at boot.
    #[must_use]
    pub fn memory_size(&self) -> MemorySize {
        self.memory_size
    }

    /// RAM it can grow to.
    #[must_use]
    pub fn max_memory_size(&self) -> MemorySize {
        self.max_memory_size
    }

    /// Where the time went when the machine was made.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// When time began to pass for a clone; `None` where the host's clock does not go by the counter that guests have,
    /// and for a machine that was booted.
    #[must_use]
    pub fn begun(&self) -> Option<Moment> {
        self.begun
    }

    /// Readable once the guest has ended.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.outcome.ended()
    }

    /// Why the guest has ended, when it has.
    #[must_use]
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.outcome.reason()
    }

    /// The place where the end is reported, for others who wait for it.
    #[must_use]
    pub fn outcome(&self) -> &Arc<Outcome> {
        &self.outcome
    }
}

/// Types on the guest's serial console.
#[derive(Debug, Clone)]
pub struct ConsoleInput(Arc<std::sync::Mutex<devices::serial::Serial>>);

impl ConsoleInput {
    /// Types `input`; returns how many bytes found room. The guest reads at its own pace.
    pub fn push(&self, input: &[u8]) -> usize {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_input(input)
    }
}
