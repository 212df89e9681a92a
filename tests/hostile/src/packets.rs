//! Target `packets`: a guest whose rings are right and whose vsock packets are not, against host
//! programs that do not keep to the handshake, stall, and go away.

use crate::driver::{Device, Driver, EVENT, Piece, RX, TX, expect_alive, into, out};
use crate::host::SERVICE_PORT;
use crate::input::actions;
use crate::machine::{GUEST_CID, Machine, lock};
use arbitrary::Arbitrary;

const HOST_CID: u64 = 2;
/// Ports of the host for connections that the host asks for start here.
const FIRST_HOST_PORT: u32 = 1 << 30;
const RX_BUFFERS: usize = 8;

#[derive(Debug, Arbitrary)]
enum Action<'a> {
    Packet(Packet, Layout),
    Bytes(&'a [u8], Vec<Piece>),
    Receive(u16, Layout),
    EventBuffer(u16),
    EventLoop,
    Notify(u8),
    Kick,
    Clone,
    Reset,
    Say(&'a [u8]),
    SayMore(u8, &'a [u8]),
    Connect(u8),
    ConnectInside(u8),
    Accept,
    Write(u8, u16),
    Read(u8, u16),
    Shut(u8, u8),
    Close(u8),
}

/// A packet of the guest, most of whose fields are plausible.
#[derive(Debug, Clone, Copy, Arbitrary)]
struct Packet {
    op: u8,
    guest_port: u8,
    host_port: u8,
    flags: u8,
    payload: u16,
    /// How much more or less the header promises.
    lie: Option<u32>,
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Context ids and socket type that are not the usual ones.
    strange: Option<(u64, u64, u16)>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Layout {
    Whole,
    HeaderAndPayload,
    Three(u16, u16),
}

impl Layout {
    fn pieces(self, total: u16, piece: fn(u16) -> Piece) -> Vec<Piece> {
        let header = total.min(44);
        match self {
            Self::Whole => vec![piece(total)],
            Self::HeaderAndPayload => vec![piece(header), piece(total - header)],
            Self::Three(first, second) => {
                let first = first.min(total);
                let second = second.min(total - first);
                vec![piece(first), piece(second), piece(total - first - second)]
            }
        }
    }
}

impl Packet {
    fn bytes(self) -> Vec<u8> {
        let (source, destination, kind) = self.strange.unwrap_or((GUEST_CID.into(), HOST_CID, 1));
        let payload = usize::from(self.payload % 0x4000);
        let length = self.lie.unwrap_or(u32::from(self.payload % 0x4000));
        let mut bytes = source.to_le_bytes().to_vec();
        bytes.extend(destination.to_le_bytes());
        bytes.extend(guest_port(self.guest_port).to_le_bytes());
        bytes.extend(host_port(self.host_port).to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u16::from(self.op % 10).to_le_bytes());
        bytes.extend(u32::from(self.flags).to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes.resize(44 + payload, 0xa5);
        bytes
    }
}

fn guest_port(choice: u8) -> u32 {
    1024 + u32::from(choice % 8)
}

fn host_port(choice: u8) -> u32 {
    match choice % 4 {
        0 => SERVICE_PORT,
        1 => 100,
        _ => FIRST_HOST_PORT + u32::from(choice / 4 % 16),
    }
}

/// Runs the program that `bytes` stand for.
pub fn run(bytes: &[u8]) {
    let mut machine = Machine::power_on();
    let mut driver = Driver::unloaded();
    boot(&machine, &mut driver);
    for action in actions(bytes) {
        machine = act(machine, &mut driver, action);
    }
    machine.run_event_loop();
    expect_alive(&mut machine);
}

fn boot(machine: &Machine, driver: &mut Driver) {
    driver.start(machine, Device::Vsock);
    driver.chain(machine, EVENT, &[into(4)]);
    for _ in 0..RX_BUFFERS {
        driver.chain(machine, RX, &[into(4096)]);
    }
    driver.notify(machine, RX);
}

fn act(mut machine: Machine, driver: &mut Driver, action: Action<'_>) -> Machine {
    match action {
        Action::Packet(packet, layout) => {
            let bytes = packet.bytes();
            let total = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            driver.send(&machine, TX, &bytes, &layout.pieces(total, out));
            driver.notify(&machine, TX);
        }
        Action::Bytes(bytes, pieces) => {
            driver.send(&machine, TX, bytes, &pieces);
            driver.notify(&machine, TX);
        }
        Action::Receive(length, layout) => {
            driver.chain(&machine, RX, &layout.pieces(length, into));
            driver.notify(&machine, RX);
        }
        Action::EventBuffer(length) => {
            driver.chain(&machine, EVENT, &[into(length)]);
            driver.notify(&machine, EVENT);
        }
        Action::EventLoop => machine.run_event_loop(),
        Action::Notify(queue) => driver.notify(&machine, queue % 3),
        Action::Kick => machine.kick(),
        Action::Clone => return machine.become_clone(),
        Action::Reset => boot(&machine, driver),
        Action::Say(text) => machine.host.say(text),
        Action::SayMore(stream, text) => machine.host.write_bytes(stream, text),
        Action::Connect(port) => {
            let line = format!("CONNECT {}\n", guest_port(port));
            machine.host.say(line.as_bytes());
        }
        Action::ConnectInside(port) => {
            let handle = lock(&machine.vsock).device().handle();
            if let Ok(stream) = handle.connect(guest_port(port)) {
                machine.host.keep(stream);
            }
        }
        Action::Accept => machine.host.accept(),
        Action::Write(stream, length) => machine.host.write(stream, length),
        Action::Read(stream, length) => machine.host.read(stream, length),
        Action::Shut(stream, how) => machine.host.shut(stream, how),
        Action::Close(stream) => machine.host.close(stream),
    }
    machine
}
