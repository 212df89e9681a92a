//! The least that a restore can cost: the KVM calls that it cannot do without, one thread, and the same
//! guest up to the same reply.
//!
//! `floor STORE TEMPLATE SOCKET` restores a clone of the template, asks its agent for the adoption and
//! prints a line once that has answered. Without a socket it waits for a byte on the guest's serial port, and that
//! is all that the machine has. There is no VM directory, no record, no log, no console, no
//! hot-plug controller, no doorbell eventfd and no event loop: the one thread runs the vCPU, and does a
//! device's work when the vCPU comes out of the guest for it.
//!
//! The guest must have one vCPU and must not have been grown.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use devices::bus::BusDevice;
use devices::virtio::device::VirtioDevice;
use devices::virtio::mmio::{MmioTransport, WINDOW_LENGTH};
use devices::virtio::state::TRANSPORT_STATE_VERSION;
use devices::virtio::vsock::{VSOCK_STATE_VERSION, Vsock, VsockConfig, VsockState};
use kvm_ioctls::{VcpuExit, VcpuFd};
use proto::frame::Frame;
use proto::{AGENT_PORT, MIN_ENTROPY_BYTES, guest};
use protobuf::Message;
use snapshot::{StateFile, Store, Template};
use ttrpc::proto::MESSAGE_TYPE_REQUEST;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm::kvm::irqchip::{VM_STATE_VERSION, VmState};
use vmm::kvm::vcpu_state::{self, VCPU_STATE_VERSION, VcpuState};
use vmm::kvm::{BareVm, KvmVm, tsc};
use vmm::layout::VirtioSlot;
use vmm::memory::{AddressSpace, MappedRam};
use vmm::{MemoryBacking, MemorySize, memory};

/// Of the guest. Only one floor runs at a time.
const CID: u32 = 4711;
/// The port of the first serial line.
const SERIAL: u16 = 0x3f8;
/// An answer has a header of so many bytes, the first four of them its length.
const HEADER_BYTES: usize = 10;

type Socket = MmioTransport<Vsock>;

fn main() -> anyhow::Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (store, name, socket) = match args.as_slice() {
        [store, name] => (store, name, None),
        [store, name, socket] => (store, name, Some(socket)),
        _ => bail!("Usage: floor STORE TEMPLATE [SOCKET]"),
    };
    let name = name.to_string_lossy().parse()?;
    let template = Store::open(store)?.acquire(&name)?;
    match socket {
        Some(socket) => run_until_answer(&template, socket),
        None => run_until_byte(&template),
    }
}

/// Before the machine is taken down, which is no part of what is measured.
fn say(answer: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{answer}")?;
    stdout.flush()?;
    Ok(())
}

/// A clone that is one vCPU and one socket device.
struct Floor {
    vcpu: VcpuFd,
    socket: Socket,
    agent: UnixStream,
    answer: Vec<u8>,
    /// After the vCPU, which uses its memory.
    _vm: KvmVm,
    /// After the VM, whose memory is there.
    _space: AddressSpace,
}

impl Floor {
    fn restore(template: &Template, socket: &Path) -> anyhow::Result<Self> {
        let state = template.state();
        let (ram, vm) = memory_and_vm(template)?;
        let vcpu = restore_vcpu(&vm, state)?;

        let versions = TRANSPORT_STATE_VERSION..=TRANSPORT_STATE_VERSION;
        let transport = state.section("vsock-transport", versions)?;
        let versions = VSOCK_STATE_VERSION..=VSOCK_STATE_VERSION;
        let device: VsockState = state.section("vsock-device", versions)?;
        let config = VsockConfig {
            cid: CID,
            socket: socket.to_owned(),
        };
        let device = Vsock::restore(&config, &device)?;
        let interrupt = Box::new(vm.interrupt_line(VirtioSlot::Vsock.gsi())?);
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::clone(&ram));
        let mut socket = MmioTransport::restore(device, memory, interrupt, &transport)?;
        socket.with_rings(|device, rings| device.reset_connections(rings));

        let mut agent = socket.device().handle().connect(AGENT_PORT)?;
        adoption()?.write(&mut agent)?;
        agent.set_nonblocking(true)?;
        Ok(Self {
            vcpu,
            socket,
            agent,
            answer: Vec::new(),
            _vm: vm,
            _space: ram.space(),
        })
    }

    /// What the agent answered, in words.
    fn run_until_answer(&mut self) -> anyhow::Result<String> {
        self.serve_host()?;
        self.socket.kick();
        loop {
            self.run_vcpu()?;
            self.serve_host()?;
            if let Some(answer) = self.whole_answer()? {
                return Ok(answer);
            }
        }
    }

    fn run_vcpu(&mut self) -> anyhow::Result<()> {
        match self.vcpu.run().context("KVM_RUN")? {
            VcpuExit::MmioWrite(address, data) => {
                if let Some(offset) = in_window(address) {
                    self.socket.write(offset, data);
                }
            }
            VcpuExit::MmioRead(address, data) => {
                if let Some(offset) = in_window(address) {
                    self.socket.read(offset, data);
                } else {
                    data.fill(0);
                }
            }
            VcpuExit::IoIn(_, data) => data.fill(0xff),
            VcpuExit::IoOut(..) => {}
            other => bail!("The guest ended with {other:?}"),
        }
        Ok(())
    }

    /// What the host's side of the socket device has to do.
    fn serve_host(&mut self) -> anyhow::Result<()> {
        self.socket
            .with_rings(|device, rings| device.backend_ready(rings));
        match self.agent.read_to_end(&mut self.answer) {
            Ok(_) => bail!("The agent has closed its connection"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("Cannot read the agent's answer"),
        }
    }

    fn whole_answer(&self) -> anyhow::Result<Option<String>> {
        let Some(length) = self.answer.first_chunk::<4>() else {
            return Ok(None);
        };
        let whole = HEADER_BYTES + usize::try_from(u32::from_be_bytes(*length))?;
        if self.answer.len() < whole {
            return Ok(None);
        }
        let frame = Frame::read(&mut self.answer.as_slice())?.context("No answer")?;
        let response = ttrpc::Response::parse_from_bytes(&frame.payload)?;
        let adopted = guest::AdoptResponse::parse_from_bytes(&response.payload)?;
        ensure!(
            adopted.cid == u64::from(CID),
            "The guest has context id {}, expected {CID}",
            adopted.cid
        );
        Ok(Some(format!("agent {}", adopted.agent_version)))
    }
}

/// Restores a clone, up to its agent's answer.
fn run_until_answer(template: &Template, socket: &Path) -> anyhow::Result<()> {
    let mut machine = Floor::restore(template, socket)?;
    let answer = machine.run_until_answer()?;
    say(&answer)
}

/// Restores a clone that has no devices, up to its first byte on the serial port.
fn run_until_byte(template: &Template) -> anyhow::Result<()> {
    let (_ram, vm) = memory_and_vm(template)?;
    let mut vcpu = restore_vcpu(&vm, template.state())?;
    loop {
        match vcpu.run().context("KVM_RUN")? {
            VcpuExit::IoOut(SERIAL, _) => return say("byte"),
            VcpuExit::IoOut(..) => {}
            VcpuExit::IoIn(_, data) => data.fill(0xff),
            other => bail!("The guest ended with {other:?}"),
        }
    }
}

fn memory_and_vm(template: &Template) -> anyhow::Result<(MappedRam, KvmVm)> {
    let size = MemorySize::from_bytes(template.manifest().spec.guest.memory_bytes)?;
    let backing = MemoryBacking::CopyOnWrite(template.memory().clone());
    let ram = memory::map(size, &backing)?;
    let vm = KvmVm::new(BareVm::create()?, &ram)?;
    Ok((ram, vm))
}

/// The order of `vmm::restore`, which says why.
fn restore_vcpu(vm: &KvmVm, state: &StateFile) -> anyhow::Result<VcpuFd> {
    let saved: VcpuState = state.section("vcpu-0", VCPU_STATE_VERSION..=VCPU_STATE_VERSION)?;
    let saved_vm: VmState = state.section("vm", VM_STATE_VERSION..=VM_STATE_VERSION)?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu_state::restore_timeless(vm, &vcpu, &saved)?;
    let counter = vcpu_state::restore_timed(&vcpu, &saved)?;
    tsc::align([&vcpu])?;
    let now = vm.restore(&saved_vm)?;
    vcpu_state::continue_tsc(&vcpu, &saved, counter, saved_vm.clock(), &now)?;
    vcpu_state::arm_timer(&vcpu, &saved)?;
    vcpu_state::announce_pause(&vcpu);
    Ok(vcpu)
}

fn in_window(address: u64) -> Option<u64> {
    let offset = address.checked_sub(VirtioSlot::Vsock.window())?;
    (offset < WINDOW_LENGTH).then_some(offset)
}

/// The first thing that any clone is asked.
fn adoption() -> anyhow::Result<Frame> {
    let mut entropy = vec![0; MIN_ENTROPY_BYTES];
    let filled = rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())?;
    ensure!(
        filled == entropy.len(),
        "The kernel gave {filled} random bytes"
    );
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let request = guest::AdoptRequest {
        entropy,
        realtime_ns: i64::try_from(now.as_nanos())?,
        hostname: "floor".to_owned(),
        generation_id: vec![7; 16],
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        cid: CID.into(),
        id: "floor".to_owned(),
        template: "floor".to_owned(),
        ..Default::default()
    };
    let envelope = ttrpc::Request {
        service: "minivmm.v1.Guest".to_owned(),
        method: "Adopt".to_owned(),
        payload: request.write_to_bytes()?,
        ..Default::default()
    };
    Ok(Frame {
        stream_id: 1,
        kind: MESSAGE_TYPE_REQUEST,
        payload: envelope.write_to_bytes()?,
    })
}
