//! A machine without KVM and without vCPUs: the devices on their buses, with the event loop that
//! serves them, as `vmm::platform` wires them. The input of a target plays guest and host.

use crate::host::Host;
use devices::bus::{Bus, SharedDevice};
use devices::console::Console;
use devices::cpu_hotplug::{self, CpuController, CpuControllerState};
use devices::ged::{self, AcpiEvent, Ged, GedState};
use devices::irq::IrqLine;
use devices::power::{self, AcpiPower, KeyboardReset, SystemEvent, SystemEvents};
use devices::pvpanic::{self, PvPanic};
use devices::serial::{self, Serial, SerialState};
use devices::virtio::mem::{BLOCK_SIZE, Mem, MemState, PlugMap, Region, RegionMemory};
use devices::virtio::mmio::{self, MmioTransport, SharedMemory};
use devices::virtio::state::TransportState;
use devices::virtio::vsock::{Vsock, VsockConfig, VsockState};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use serde::de::DeserializeOwned;
use snapshot::{StateFile, StateWriter};
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// End of the RAM.
pub const RAM_END: u64 = 64 << 20;
/// Where memory can be added, and how much.
pub const REGION_START: u64 = 4 << 30;
/// Bytes that can be added.
pub const REGION_LENGTH: u64 = 512 << 20;
/// How much of the region has memory behind it.
const REGION_BACKED: u64 = 4 << 20;
/// The guest's context id.
pub const GUEST_CID: u32 = 3;
/// Possible CPUs.
pub const CPUS: u8 = 8;

/// Register windows, as in `vmm::layout`.
pub const VSOCK_WINDOW: u64 = 0xd000_0000;
/// The memory device's.
pub const MEM_WINDOW: u64 = 0xd000_1000;
/// The event device's.
pub const GED_REGISTER: u64 = 0xd010_0000;
/// The CPU controller's.
pub const CPU_CONTROLLER: u64 = 0xd010_1000;

/// Turns of the event loop until a device that asks for more and more of them is taken for busy.
const MOST_TURNS: usize = 64;
const VERSION: u16 = 1;

/// The sections of a saved machine.
pub const SECTIONS: [&str; 7] = [
    "serial",
    "ged",
    "cpus",
    "vsock-transport",
    "vsock-device",
    "mem-transport",
    "mem-device",
];

type Events = EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>;

/// Anything that a machine cannot be made of.
pub type Refusal = Box<dyn Error>;

/// The machine.
pub struct Machine {
    /// Guest memory.
    pub memory: SharedMemory,
    /// Port I/O.
    pub ports: Bus,
    /// MMIO.
    pub mmio: Bus,
    /// The host's programs.
    pub host: Host,
    /// COM1.
    pub serial: Arc<Mutex<Serial>>,
    /// CPU hot-plug controller.
    pub cpus: Arc<Mutex<CpuController>>,
    /// Event device.
    pub ged: Arc<Mutex<Ged>>,
    /// Socket device.
    pub vsock: Arc<Mutex<MmioTransport<Vsock>>>,
    /// Memory device.
    pub mem: Arc<Mutex<MmioTransport<Mem>>>,
    console: Arc<Console>,
    events: Events,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("ports", &self.ports)
            .field("mmio", &self.mmio)
            .finish_non_exhaustive()
    }
}

struct Parts {
    serial: Serial,
    ged: Ged,
    cpus: CpuController,
    vsock: MmioTransport<Vsock>,
    mem: MmioTransport<Mem>,
    console: Arc<Console>,
}

impl Machine {
    /// A machine after power-on.
    pub fn power_on() -> Self {
        let ranges = [
            (GuestAddress(0), length(RAM_END)),
            (GuestAddress(REGION_START), length(REGION_BACKED)),
        ];
        let memory = must(GuestMemoryMmap::from_ranges(&ranges));
        let memory = GuestMemoryAtomic::new(memory);
        let host = Host::start();
        let parts = must(Parts::new(&memory, &host));
        Self::assemble(memory, host, parts)
    }

    /// Goes on as a clone of itself, from the bytes of its state file.
    ///
    /// Whatever the guest did, the state that the devices save is one that they take back.
    pub fn become_clone(self) -> Self {
        let state = self.save();
        must(self.replaced_by(&state))
    }

    /// Goes on with this state, of whatever machine.
    ///
    /// # Errors
    /// The state is refused.
    pub fn replaced_by(self, state: &[u8]) -> Result<Self, Refusal> {
        let file = StateFile::parse(state.to_vec(), Path::new("state"))?;
        let (memory, host) = self.ended();
        let parts = Parts::restore(&memory, &host, &file)?;
        let machine = Self::assemble(memory, host, parts);
        let mut vsock = lock(&machine.vsock);
        vsock.with_rings(|device, rings| device.reset_connections(rings));
        drop(vsock);
        machine.kick();
        Ok(machine)
    }

    /// The bytes of the state file.
    pub fn save(&self) -> Vec<u8> {
        let mut writer = StateWriter::new();
        let vsock = lock(&self.vsock);
        let mem = lock(&self.mem);
        let [
            serial,
            ged,
            cpus,
            vsock_transport,
            vsock_device,
            mem_transport,
            mem_device,
        ] = SECTIONS;
        must(writer.section(serial, VERSION, &lock(&self.serial).save()));
        must(writer.section(ged, VERSION, &lock(&self.ged).save()));
        must(writer.section(cpus, VERSION, &lock(&self.cpus).save()));
        must(writer.section(vsock_transport, VERSION, &vsock.save()));
        must(writer.section(vsock_device, VERSION, &vsock.device().save()));
        must(writer.section(mem_transport, VERSION, &mem.save()));
        must(writer.section(mem_device, VERSION, &mem.device().save()));
        writer.finish()
    }

    /// What the machine does when it goes on after a pause.
    pub fn kick(&self) {
        lock(&self.vsock).kick();
        lock(&self.mem).kick();
        lock(&self.ged).kick();
    }

    /// Lets the event loop do what there is to do, but not for ever: a guest may keep it busy.
    pub fn run_event_loop(&mut self) {
        for _ in 0..MOST_TURNS {
            if must(self.events.run_with_timeout(0)) == 0 {
                break;
            }
        }
        let _output = self.console.take();
    }

    /// Asks the guest to plug this many blocks.
    pub fn request_memory(&self, blocks: u8) {
        let size = u64::from(blocks) * BLOCK_SIZE;
        // 255 blocks are less than the region has.
        must(lock(&self.mem).change_config(|device| device.set_requested_size(size)));
    }

    /// Raises the event of the CPU controller.
    pub fn announce_cpus(&self) {
        lock(&self.ged).notify(AcpiEvent::Cpu);
    }

    /// Its devices are gone, and with them the file of its socket.
    fn ended(self) -> (SharedMemory, Host) {
        (self.memory, self.host)
    }

    fn assemble(memory: SharedMemory, host: Host, parts: Parts) -> Self {
        let serial = Arc::new(Mutex::new(parts.serial));
        let ged = Arc::new(Mutex::new(parts.ged));
        let cpus = Arc::new(Mutex::new(parts.cpus));
        let vsock = Arc::new(Mutex::new(parts.vsock));
        let mem = Arc::new(Mutex::new(parts.mem));
        let mut events: Events = must(EventManager::new());
        events.add_subscriber(vsock.clone());
        events.add_subscriber(mem.clone());
        let mut mmio = Bus::new();
        let mut put = |base, length, device: SharedDevice| must(mmio.insert(base, length, device));
        put(VSOCK_WINDOW, mmio::WINDOW_LENGTH, vsock.clone());
        put(MEM_WINDOW, mmio::WINDOW_LENGTH, mem.clone());
        put(GED_REGISTER, ged::WINDOW_LENGTH, ged.clone());
        put(CPU_CONTROLLER, cpu_hotplug::WINDOW_LENGTH, cpus.clone());
        Self {
            memory,
            ports: port_bus(serial.clone()),
            mmio,
            host,
            serial,
            cpus,
            ged,
            vsock,
            mem,
            console: parts.console,
            events,
        }
    }
}

impl Parts {
    fn new(memory: &SharedMemory, host: &Host) -> Result<Self, Refusal> {
        let console = Arc::new(Console::new()?);
        let map = PlugMap::new(Region::new(GuestAddress(REGION_START), REGION_LENGTH)?);
        let vsock = Vsock::new(&vsock_config(host))?;
        Ok(Self {
            serial: Serial::new(line()?, console.clone()),
            ged: Ged::new(line()?),
            cpus: CpuController::new(2, CPUS),
            vsock: MmioTransport::new(vsock, memory.clone(), line()?)?,
            mem: MmioTransport::new(new_mem(map)?, memory.clone(), line()?)?,
            console,
        })
    }

    fn restore(memory: &SharedMemory, host: &Host, file: &StateFile) -> Result<Self, Refusal> {
        let console = Arc::new(Console::new()?);
        let [
            serial,
            ged,
            cpus,
            vsock_transport,
            vsock_device,
            mem_transport,
            mem_device,
        ] = SECTIONS;
        let serial: SerialState = section(file, serial)?;
        let ged: GedState = section(file, ged)?;
        let cpus: CpuControllerState = section(file, cpus)?;
        let vsock_transport: TransportState = section(file, vsock_transport)?;
        let vsock: VsockState = section(file, vsock_device)?;
        let mem_transport: TransportState = section(file, mem_transport)?;
        let mem: MemState = section(file, mem_device)?;
        let vsock = Vsock::restore(&vsock_config(host), &vsock)?;
        let map = PlugMap::try_from(&mem)?;
        Ok(Self {
            serial: Serial::restore(line()?, console.clone(), &serial)?,
            ged: Ged::restore(line()?, ged),
            cpus: CpuController::restore(cpus, CPUS, CPUS)?,
            vsock: MmioTransport::restore(vsock, memory.clone(), line()?, &vsock_transport)?,
            mem: MmioTransport::restore(new_mem(map)?, memory.clone(), line()?, &mem_transport)?,
            console,
        })
    }
}

fn section<T: DeserializeOwned>(file: &StateFile, name: &str) -> Result<T, Refusal> {
    Ok(file.section(name, VERSION..=VERSION)?)
}

fn new_mem(map: PlugMap) -> Result<Mem, Refusal> {
    let length = map.region().length();
    Ok(Mem::new(map, Box::new(Backend { length }))?)
}

fn vsock_config(host: &Host) -> VsockConfig {
    VsockConfig {
        cid: GUEST_CID,
        socket: host.socket().to_owned(),
    }
}

fn port_bus(serial: SharedDevice) -> Bus {
    let mut ports = Bus::new();
    let events = Arc::new(Nobody);
    let acpi = Arc::new(Mutex::new(AcpiPower::new(events.clone())));
    let keyboard = Arc::new(Mutex::new(KeyboardReset::new(events.clone())));
    let panic = Arc::new(Mutex::new(PvPanic::new(events)));
    let mut put =
        |base: u16, length, device: SharedDevice| must(ports.insert(base.into(), length, device));
    put(serial::COM1_PORT, serial::PORTS.into(), serial);
    put(power::ACPI_PORT, power::ACPI_PORTS.into(), acpi);
    put(power::KEYBOARD_COMMAND_PORT, 1, keyboard);
    put(pvpanic::PORT, 1, panic);
    ports
}

/// An interrupt that nobody waits for.
///
/// # Errors
/// No descriptors left.
pub fn line() -> io::Result<Box<dyn IrqLine>> {
    Ok(Box::new(EventFd::new(libc::EFD_NONBLOCK)?))
}

#[derive(Debug)]
struct Nobody;

impl SystemEvents for Nobody {
    fn report(&self, _event: SystemEvent) {}
}

/// Memory of a region that checks what it is asked to discard.
#[derive(Debug)]
struct Backend {
    length: u64,
}

impl RegionMemory for Backend {
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let whole = offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_SIZE);
        let end = offset.checked_add(length);
        let inside = length > 0 && end.is_some_and(|end| end <= self.length);
        assert!(whole && inside, "discards {length:#x} at {offset:#x}");
        Ok(())
    }
}

/// A device that is left alone by whoever panicked is a failed run already.
pub fn lock<T: ?Sized>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    must(shared.lock())
}

/// A mapped view of guest memory.
pub fn view(memory: &SharedMemory) -> impl std::ops::Deref<Target = GuestMemoryMmap> {
    memory.memory()
}

/// What has to work whatever the input is.
///
/// # Panics
/// It does not: this is how a target reports a fault.
#[track_caller]
pub fn must<T, E: fmt::Debug>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:?}"),
    }
}

/// A length of memory of this process.
pub fn length(bytes: u64) -> usize {
    must(usize::try_from(bytes))
}
