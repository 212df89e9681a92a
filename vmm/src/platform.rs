//! The devices of a machine, connected to its buses, its interrupts and its event loop.

use crate::balloon_part::{self, StatsRequest};
use crate::config::{BootConfig, CloneConfig, DiskConfig, VcpuCounts, VsockConfig};
use crate::disks::{DiskError, Disks, DisksState};
use crate::event_loop::Subscriber;
use crate::hotplug_region::HotplugRegion;
use crate::kvm::{KvmError, KvmVm};
use crate::layout::{CPU_CONTROLLER, GED_GSI, GED_REGISTER, GENERATION_ID, SERIAL_GSI, VirtioSlot};
use crate::memory_request::MemoryRequest;
use crate::net_part::{self, SavedNet};
use crate::outcome::Outcome;
use crate::virtio_part::{VirtioPart, read_transport};
use devices::bus::{Bus, BusDevice, Overlap, SharedDevice};
use devices::console::Console;
use devices::cpu_hotplug::{
    self, CPU_CONTROLLER_STATE_VERSION, CpuController, CpuControllerError, CpuControllerState,
    Presence,
};
use devices::ged::{self, AcpiEvent, GED_STATE_VERSION, Ged, GedState};
use devices::irq::IrqLine;
use devices::power::{self, AcpiPower, KeyboardReset};
use devices::pvpanic::{self, PvPanic};
use devices::serial::{self, SERIAL_STATE_VERSION, Serial, SerialError, SerialState};
use devices::virtio::balloon::{Balloon, BalloonError};
use devices::virtio::blk::{BlkError, Unsettled};
use devices::virtio::device::VirtioDevice;
use devices::virtio::mem::{
    MEM_STATE_VERSION, Mem, MemError, MemState, MemStateError, PlugMap, Region, RegionError,
    SizeError,
};
use devices::virtio::mmio::{self, MmioTransport, SharedMemory, TransportError};
use devices::virtio::net::{Net, NetError};
use devices::virtio::rng::{Rng, RngError};
use devices::virtio::state::{TRANSPORT_STATE_VERSION, TransportState};
use devices::virtio::vsock::{self, VSOCK_STATE_VERSION, Vsock, VsockError, VsockState};
use snapshot::{StateError, StateFile, StateWriter, WriteError};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::GuestAddressSpace;

const SERIAL_SECTION: &str = "serial";
const GED_SECTION: &str = "ged";
const VSOCK_TRANSPORT_SECTION: &str = "vsock-transport";
const VSOCK_SECTION: &str = "vsock-device";
const CPUS_SECTION: &str = "cpu-controller";
const MEM_TRANSPORT_SECTION: &str = "mem-transport";
const MEM_SECTION: &str = "mem-device";
const RNG_SECTION: &str = "rng-transport";

/// A device cannot be made or restored.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// No eventfd.
    #[error("Cannot create an eventfd for a device")]
    EventFd(#[source] io::Error),
    /// A KVM call.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The address map contradicts itself.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The serial port.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A virtio device.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// The CPU controller's state.
    #[error(transparent)]
    Cpus(#[from] CpuControllerError),
    /// The memory device.
    #[error(transparent)]
    Mem(#[from] MemError),
    /// The memory device's state.
    #[error(transparent)]
    MemState(#[from] MemStateError),
    /// The entropy device.
    #[error(transparent)]
    Rng(#[from] RngError),
    /// The balloon device.
    #[error(transparent)]
    Balloon(#[from] BalloonError),
    /// The network device.
    #[error(transparent)]
    Net(#[from] NetError),
    /// No network device in the template.
    #[error("The saved machine has no network device; make the template with --net")]
    NoNet,
    /// Where the memory device is.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// A size of added memory.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The state has a memory device for another region than the machine, or lacks one.
    #[error("Saved memory device does not belong to the saved machine")]
    OtherRegion,
    /// A disk.
    #[error(transparent)]
    Disk(#[from] BlkError),
    /// The number of disks.
    #[error(transparent)]
    Disks(#[from] DiskError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The new generation id.
    #[error("Generation id cannot be written to guest memory")]
    Generation(#[source] vm_memory::GuestMemoryError),
}

/// All devices.
#[derive(Debug)]
pub struct Platform {
    console: Arc<Console>,
    serial: Arc<Mutex<Serial>>,
    ged: Arc<Mutex<Ged>>,
    vsock: Arc<Mutex<MmioTransport<Vsock>>>,
    cpus: Arc<Mutex<CpuController>>,
    /// `None` in a machine that cannot grow.
    mem: Option<Arc<Mutex<MmioTransport<Mem>>>>,
    disks: Disks,
    rng: Option<VirtioPart<Rng>>,
    balloon: Option<VirtioPart<Balloon>>,
    net: Option<VirtioPart<Net>>,
}

/// The saved state of all devices.
#[derive(Debug)]
pub struct PlatformState {
    serial: SerialState,
    ged: GedState,
    vsock_transport: TransportState,
    vsock: VsockState,
    cpus: CpuControllerState,
    mem: Option<(TransportState, MemState)>,
    disks: DisksState,
    rng: Option<TransportState>,
    balloon: Option<TransportState>,
    net: Option<SavedNet>,
}

impl PlatformState {
    /// Reads the devices' sections.
    ///
    /// # Errors
    /// A section is missing, too new or damaged.
    pub fn read(file: &StateFile) -> Result<Self, StateError> {
        Ok(Self {
            serial: file.section(SERIAL_SECTION, SERIAL_STATE_VERSION..=SERIAL_STATE_VERSION)?,
            ged: file.section(GED_SECTION, GED_STATE_VERSION..=GED_STATE_VERSION)?,
            vsock_transport: file.section(
                VSOCK_TRANSPORT_SECTION,
                TRANSPORT_STATE_VERSION..=TRANSPORT_STATE_VERSION,
            )?,
            vsock: file.section(VSOCK_SECTION, VSOCK_STATE_VERSION..=VSOCK_STATE_VERSION)?,
            cpus: file.section(
                CPUS_SECTION,
                CPU_CONTROLLER_STATE_VERSION..=CPU_CONTROLLER_STATE_VERSION,
            )?,
            mem: Self::read_mem(file)?,
            disks: DisksState::read(file)?,
            rng: read_transport(file, RNG_SECTION)?,
            balloon: read_transport(file, balloon_part::SECTION)?,
            net: SavedNet::read(file)?,
        })
    }

    fn read_mem(file: &StateFile) -> Result<Option<(TransportState, MemState)>, StateError> {
        if !file.has(MEM_SECTION) {
            return Ok(None);
        }
        let versions = TRANSPORT_STATE_VERSION..=TRANSPORT_STATE_VERSION;
        Ok(Some((
            file.section(MEM_TRANSPORT_SECTION, versions)?,
            file.section(MEM_SECTION, MEM_STATE_VERSION..=MEM_STATE_VERSION)?,
        )))
    }
}

impl Platform {
    /// Devices as after power-on.
    ///
    /// # Errors
    /// The host has no descriptors left, or the socket's path cannot be used.
    pub fn new(
        vm: &KvmVm,
        memory: &SharedMemory,
        config: &BootConfig,
        region: Option<&HotplugRegion>,
    ) -> Result<Self, PlatformError> {
        let console = Arc::new(Console::new().map_err(PlatformError::EventFd)?);
        let serial = Serial::new(line(vm, SERIAL_GSI)?, console.clone());
        let ged = Ged::new(line(vm, GED_GSI)?);
        let vsock = Vsock::new(&vsock_config(&config.vsock))?;
        let interrupt = line(vm, VirtioSlot::Vsock.gsi())?;
        let vsock = MmioTransport::new(vsock, memory.clone(), interrupt)?;
        let cpus = CpuController::new(config.cpus.boot(), config.cpus.max());
        let mem = region
            .map(|region| new_mem(vm, memory, region))
            .transpose()?;
        let rng = config.rng.then(|| new_rng(vm, memory, None)).transpose()?;
        let balloon = config
            .balloon
            .then(|| balloon_part::new(vm, memory, None))
            .transpose()?;
        let net = config.net.as_ref();
        let net = net.map(|config| net_part::new(vm, memory, config));
        let net = net.transpose()?;
        Self {
            console,
            serial: Arc::new(Mutex::new(serial)),
            ged: Arc::new(Mutex::new(ged)),
            vsock: Arc::new(Mutex::new(vsock)),
            cpus: Arc::new(Mutex::new(cpus)),
            mem: mem.map(|mem| Arc::new(Mutex::new(mem))),
            disks: Disks::new(vm, memory, &config.disks)?,
            rng,
            balloon,
            net,
        }
        .with_doorbells(vm)
    }

    /// Devices of a template, in a clone. Call after the interrupt controllers were restored: the
    /// devices send their pending interrupts again.
    ///
    /// # Errors
    /// As [`Self::new`], or the state does not fit.
    pub fn restore(
        vm: &KvmVm,
        memory: &SharedMemory,
        config: &CloneConfig,
        state: &PlatformState,
        cpus: VcpuCounts,
        region: Option<&HotplugRegion>,
    ) -> Result<Self, PlatformError> {
        let console = Arc::new(Console::new().map_err(PlatformError::EventFd)?);
        let serial = Serial::restore(line(vm, SERIAL_GSI)?, console.clone(), &state.serial)?;
        let ged = Ged::restore(line(vm, GED_GSI)?, state.ged);
        let vsock = Vsock::restore(&vsock_config(&config.vsock), &state.vsock)?;
        let interrupt = line(vm, VirtioSlot::Vsock.gsi())?;
        let vsock =
            MmioTransport::restore(vsock, memory.clone(), interrupt, &state.vsock_transport)?;
        let cpus = CpuController::restore(state.cpus.clone(), cpus.boot(), cpus.max())?;
        let mem = match (region, &state.mem) {
            (Some(region), Some(state)) => Some(restore_mem(vm, memory, region, state)?),
            (None, None) => None,
            _ => return Err(PlatformError::OtherRegion),
        };
        let rng = state.rng.as_ref();
        let rng = rng.map(|state| new_rng(vm, memory, Some(state)));
        let rng = rng.transpose()?;
        let balloon = state.balloon.as_ref();
        let balloon = balloon.map(|state| balloon_part::new(vm, memory, Some(state)));
        let balloon = balloon.transpose()?;
        let net = net_part::restore(vm, memory, config.net.as_ref(), state.net.as_ref())?;
        Self {
            console,
            serial: Arc::new(Mutex::new(serial)),
            ged: Arc::new(Mutex::new(ged)),
            vsock: Arc::new(Mutex::new(vsock)),
            cpus: Arc::new(Mutex::new(cpus)),
            mem: mem.map(|mem| Arc::new(Mutex::new(mem))),
            disks: Disks::restore(vm, memory, &config.disks, &state.disks)?,
            rng,
            balloon,
            net,
        }
        .with_doorbells(vm)
    }

    /// Adds all devices to a state file.
    ///
    /// # Errors
    /// A section cannot be encoded.
    pub fn save(&self, writer: &mut StateWriter) -> Result<(), WriteError> {
        writer.section(
            SERIAL_SECTION,
            SERIAL_STATE_VERSION,
            &lock(&self.serial).save(),
        )?;
        writer.section(GED_SECTION, GED_STATE_VERSION, &lock(&self.ged).save())?;
        let vsock = lock(&self.vsock);
        writer.section(
            VSOCK_TRANSPORT_SECTION,
            TRANSPORT_STATE_VERSION,
            &vsock.save(),
        )?;
        writer.section(VSOCK_SECTION, VSOCK_STATE_VERSION, &vsock.device().save())?;
        let cpus = lock(&self.cpus).save();
        writer.section(CPUS_SECTION, CPU_CONTROLLER_STATE_VERSION, &cpus)?;
        if let Some(mem) = &self.mem {
            let mem = lock(mem);
            writer.section(MEM_TRANSPORT_SECTION, TRANSPORT_STATE_VERSION, &mem.save())?;
            writer.section(MEM_SECTION, MEM_STATE_VERSION, &mem.device().save())?;
        }
        self.disks.save(writer)?;
        if let Some(rng) = &self.rng {
            rng.save(writer, RNG_SECTION)?;
        }
        if let Some(balloon) = &self.balloon {
            balloon.save(writer, balloon_part::SECTION)?;
        }
        if let Some(net) = &self.net {
            net_part::save(net, writer)?;
        }
        Ok(())
    }

    /// Tells the guest that it is a clone: a new generation id, and no connections.
    ///
    /// # Errors
    /// The generation id is not in guest memory.
    pub fn announce_clone(
        &self,
        memory: &SharedMemory,
        config: &CloneConfig,
    ) -> Result<(), PlatformError> {
        let memory = memory.memory();
        config
            .generation
            .store(&memory, GENERATION_ID)
            .map_err(PlatformError::Generation)?;
        lock(&self.ged).notify(AcpiEvent::Generation);
        lock(&self.vsock).with_rings(|device, rings| device.reset_connections(rings));
        Ok(())
    }

    /// Looks again for everything that may have been on its way at a pause.
    pub fn kick(&self) {
        lock(&self.vsock).kick();
        if let Some(mem) = &self.mem {
            lock(mem).kick();
        }
        self.disks.kick();
        if let Some(rng) = &self.rng {
            rng.lock().kick();
        }
        if let Some(balloon) = &self.balloon {
            balloon.lock().kick();
        }
        if let Some(net) = &self.net {
            net.lock().kick();
        }
        lock(&self.ged).kick();
    }

    /// Waits until no request of a disk is under way. No vCPU runs and the event loop is parked.
    ///
    /// # Errors
    /// The host's storage does not answer.
    pub fn settle(&self) -> Result<(), Unsettled> {
        self.disks.settle()
    }

    /// What is on the disks, in the order of their slots.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskConfig> {
        self.disks.configs()
    }

    /// Which CPUs are there.
    #[must_use]
    pub fn presence(&self) -> Presence {
        lock(&self.cpus).presence().clone()
    }

    /// Makes the guest look which CPUs came, or are asked to go.
    pub fn announce_cpus(&self) {
        lock(&self.ged).notify(AcpiEvent::Cpu);
    }

    /// How much memory the guest has plugged; `None` when there is no memory device.
    #[must_use]
    pub fn memory_request(&self) -> Option<MemoryRequest> {
        self.mem.clone().map(MemoryRequest::new)
    }

    /// How the guest is asked about its memory; `None` when there is no balloon device.
    #[must_use]
    pub fn stats_request(&self) -> Option<StatsRequest> {
        self.balloon.as_ref().map(StatsRequest::new)
    }

    /// The plugged parts of the region for added memory: offset and length in bytes, in order.
    #[must_use]
    pub fn plugged_ranges(&self) -> Vec<(u64, u64)> {
        let Some(mem) = &self.mem else {
            return Vec::new();
        };
        let mem = lock(mem);
        let ranges = mem.device().map().plugged_ranges();
        ranges.map(|range| (range.offset, range.length)).collect()
    }

    /// Makes the guest plug, or unplug, until it has `added` bytes more than at boot. `grant` is
    /// called first with the length of what the guest can reach then.
    ///
    /// # Errors
    /// The size is impossible, or `grant` fails.
    pub fn request_memory<E: From<PlatformError>>(
        &self,
        added: u64,
        grant: impl FnOnce(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(mem) = &self.mem else {
            return Ok(());
        };
        let mut mem = lock(mem);
        let usable = mem.device().map().usable_size_for(added);
        grant(usable.map_err(PlatformError::from)?)?;
        let requested = mem.change_config(|device| device.set_requested_size(added));
        requested.map_err(|error| PlatformError::from(error).into())
    }

    /// What the event loop has to serve.
    #[must_use]
    pub fn subscribers(&self) -> Vec<Subscriber> {
        let mut all: Vec<Subscriber> = vec![self.vsock.clone()];
        if let Some(mem) = &self.mem {
            all.push(mem.clone());
        }
        all.extend(self.disks.subscribers());
        all.extend(self.rng.as_ref().map(VirtioPart::subscriber));
        all.extend(self.balloon.as_ref().map(VirtioPart::subscriber));
        all.extend(self.net.as_ref().map(VirtioPart::subscriber));
        all
    }

    /// The buses that vCPUs see.
    ///
    /// # Errors
    /// The address map contradicts itself.
    pub fn buses(&self, outcome: &Arc<Outcome>) -> Result<(Bus, Bus), Overlap> {
        let mut ports = Bus::new();
        let port = u64::from;
        ports.insert(
            port(serial::COM1_PORT),
            serial::PORTS.into(),
            self.serial.clone(),
        )?;
        let acpi = shared(AcpiPower::new(outcome.clone()));
        ports.insert(port(power::ACPI_PORT), port(power::ACPI_PORTS), acpi)?;
        let keyboard = shared(KeyboardReset::new(outcome.clone()));
        ports.insert(port(power::KEYBOARD_COMMAND_PORT), 1, keyboard)?;
        ports.insert(
            port(pvpanic::PORT),
            1,
            shared(PvPanic::new(outcome.clone())),
        )?;
        let mut mmio = Bus::new();
        mmio.insert(GED_REGISTER, ged::WINDOW_LENGTH, self.ged.clone())?;
        mmio.insert(
            VirtioSlot::Vsock.window(),
            mmio::WINDOW_LENGTH,
            self.vsock.clone(),
        )?;
        mmio.insert(
            CPU_CONTROLLER,
            cpu_hotplug::WINDOW_LENGTH,
            self.cpus.clone(),
        )?;
        if let Some(mem) = &self.mem {
            let window = VirtioSlot::Mem.window();
            mmio.insert(window, mmio::WINDOW_LENGTH, mem.clone())?;
        }
        self.disks.insert(&mut mmio)?;
        if let Some(rng) = &self.rng {
            rng.connect(&mut mmio)?;
        }
        if let Some(balloon) = &self.balloon {
            balloon.connect(&mut mmio)?;
        }
        if let Some(net) = &self.net {
            net.connect(&mut mmio)?;
        }
        Ok((ports, mmio))
    }

    /// The guest's console output.
    #[must_use]
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// The serial port, for input.
    #[must_use]
    pub fn serial(&self) -> &Arc<Mutex<Serial>> {
        &self.serial
    }

    /// Opens connections to the guest's ports.
    #[must_use]
    pub fn vsock_handle(&self) -> vsock::VsockHandle {
        lock(&self.vsock).device().handle()
    }

    fn with_doorbells(self, vm: &KvmVm) -> Result<Self, PlatformError> {
        connect_doorbells(vm, VirtioSlot::Vsock, &lock(&self.vsock))?;
        if let Some(mem) = &self.mem {
            connect_doorbells(vm, VirtioSlot::Mem, &lock(mem))?;
        }
        Ok(self)
    }
}

fn new_mem(
    vm: &KvmVm,
    memory: &SharedMemory,
    region: &HotplugRegion,
) -> Result<MmioTransport<Mem>, PlatformError> {
    let range = region.range();
    let map = PlugMap::new(Region::new(range.start, range.length)?);
    let mem = Mem::new(map, region.giver_back())?;
    let interrupt = line(vm, VirtioSlot::Mem.gsi())?;
    Ok(MmioTransport::new(mem, memory.clone(), interrupt)?)
}

fn restore_mem(
    vm: &KvmVm,
    memory: &SharedMemory,
    region: &HotplugRegion,
    (transport, state): &(TransportState, MemState),
) -> Result<MmioTransport<Mem>, PlatformError> {
    let map = PlugMap::try_from(state)?;
    let range = region.range();
    let same = (map.region().start(), map.region().length()) == (range.start, range.length);
    if !same || map.usable_size() > region.granted() {
        return Err(PlatformError::OtherRegion);
    }
    let mem = Mem::new(map, region.giver_back())?;
    let interrupt = line(vm, VirtioSlot::Mem.gsi())?;
    let memory = memory.clone();
    Ok(MmioTransport::restore(mem, memory, interrupt, transport)?)
}

fn new_rng(
    vm: &KvmVm,
    memory: &SharedMemory,
    state: Option<&TransportState>,
) -> Result<VirtioPart<Rng>, PlatformError> {
    VirtioPart::new(vm, memory, VirtioSlot::Rng, Rng::new()?, state)
}

pub(crate) fn connect_doorbells<D: VirtioDevice>(
    vm: &KvmVm,
    slot: VirtioSlot,
    transport: &MmioTransport<D>,
) -> Result<(), KvmError> {
    let address = slot.window() + mmio::QUEUE_NOTIFY_OFFSET;
    let mut queues = (0..).zip(transport.doorbells());
    queues.try_for_each(|(queue, doorbell)| vm.connect_doorbell(doorbell, address, queue))
}

fn vsock_config(config: &VsockConfig) -> vsock::VsockConfig {
    vsock::VsockConfig {
        cid: config.cid,
        socket: config.socket.clone(),
    }
}

pub(crate) fn line(vm: &KvmVm, gsi: u32) -> Result<Box<dyn IrqLine>, KvmError> {
    Ok(Box::new(vm.interrupt_line(gsi)?))
}

fn shared(device: impl BusDevice + 'static) -> SharedDevice {
    Arc::new(Mutex::new(device))
}

/// A device whose last user panicked is as good as any other: the guest's state is in the guest.
pub(crate) fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
