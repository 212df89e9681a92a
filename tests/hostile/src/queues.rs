//! Target `queues`: drivers that write nonsense to the rings, registers and memory of a disk, a network card, an
//! entropy or a balloon device, while the host works and the machine is cloned.

use crate::driver::{Piece, Place, into, out, put_chain};
use crate::input::actions;
use crate::machine::{length, must, view};
use crate::optional::{Kind, Part, power_on};
use arbitrary::Arbitrary;
use devices::bus::Bus;
use devices::virtio::mmio::{self, SharedMemory};
use devices::virtio::testing::{PER_SLOT, Ring};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

const WINDOW: u64 = 0xd000_0000;
const RAM: u64 = 80 << 20;
/// More than any device has.
const QUEUES: u16 = 4;
const QUEUE_SIZE: u16 = 64;
/// Turns of the event loop until a device that asks for more and more of them is taken for busy.
const MOST_TURNS: usize = 32;
/// How long a device may take for an answer that it owes.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

// Registers of the transport (virtio 1.2, section 4.2.2), and bits.
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SELECT: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_MOST: u64 = 0x34;
const QUEUE_LENGTH: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const DRIVER_OK: u32 = 0xf;

#[derive(Debug, Arbitrary)]
enum Action<'a> {
    Start(u32),
    Chain(u8, Vec<Piece>),
    Send(u8, &'a [u8], Vec<Piece>),
    Request(u8, u8, u32, Vec<Piece>),
    Descriptor(u8, u16, Place, u32, u16),
    Available(u8, u16),
    ClaimAvailable(u8, u16),
    Poke(Place, &'a [u8]),
    Notify(u8),
    Doorbell(u8),
    Register(u8, u32),
    Status(u8),
    EventLoop,
    Kick,
    Clone,
    Frame(&'a [u8]),
}

/// Runs the program that `bytes` stand for; the first of them chooses the device.
pub fn run(bytes: &[u8]) {
    let (first, program) = bytes
        .split_first()
        .map_or((0, bytes), |(b, rest)| (*b, rest));
    let kind = Kind::ALL[usize::from(first) % Kind::ALL.len()];
    let mut bench = Bench::new(kind);
    bench.start(u32::MAX);
    for action in actions(program) {
        bench.act(action);
    }
    bench.run_event_loop();
    bench.expect_alive();
}

struct Bench {
    kind: Kind,
    memory: SharedMemory,
    part: Box<dyn Part>,
    peer: Option<UnixDatagram>,
    bus: Bus,
    events: EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>,
    rings: Vec<Ring>,
    next_slot: [u16; QUEUES as usize],
}

impl Bench {
    fn new(kind: Kind) -> Self {
        let memory = must(GuestMemoryMmap::from_ranges(&[(
            GuestAddress(0),
            length(RAM),
        )]));
        let memory = GuestMemoryAtomic::new(memory);
        let (part, peer) = power_on(kind, &memory);
        let mut bus = Bus::new();
        must(bus.insert(WINDOW, mmio::WINDOW_LENGTH, part.registers()));
        let mut bench = Self {
            kind,
            memory,
            part,
            peer,
            bus,
            events: must(EventManager::new()),
            rings: (0..QUEUES)
                .map(|queue| Ring::new(queue, QUEUE_SIZE))
                .collect(),
            next_slot: [0; QUEUES as usize],
        };
        bench.connect_event_loop();
        bench
    }

    fn connect_event_loop(&mut self) {
        self.events = must(EventManager::new());
        self.events.add_subscriber(self.part.subscriber());
    }

    fn act(&mut self, action: Action<'_>) {
        match action {
            Action::Start(features) => self.start(features),
            Action::Chain(queue, pieces) => self.send(queue, &[], &pieces),
            Action::Send(queue, bytes, pieces) => self.send(queue, bytes, &pieces),
            Action::Request(queue, kind, sector, pieces) => {
                self.send(queue, &request(kind, sector.into()), &pieces);
            }
            Action::Descriptor(queue, number, at, length, flags) => {
                let ring = &self.rings[usize::from(queue % 4)];
                let memory = view(&self.memory);
                ring.put_descriptor(&memory, number % QUEUE_SIZE, at.address(), length, flags);
            }
            Action::Available(queue, head) => {
                let ring = &mut self.rings[usize::from(queue % 4)];
                ring.make_available(&view(&self.memory), head);
            }
            Action::ClaimAvailable(queue, index) => {
                let at = self.rings[usize::from(queue % 4)].avail_ring() + 2;
                must(view(&self.memory).write_obj(index, GuestAddress(at)));
            }
            Action::Poke(place, bytes) => {
                // The guest has no memory there: nothing happens.
                drop(view(&self.memory).write_slice(bytes, place.address()));
            }
            Action::Notify(queue) => self.write(NOTIFY, queue.into()),
            Action::Doorbell(queue) => self.part.doorbell((queue % 4).into()),
            Action::Register(register, value) => self.write(4 * u64::from(register), value),
            Action::Status(value) => self.write(STATUS, value.into()),
            Action::EventLoop => self.run_event_loop(),
            Action::Kick => self.part.kick(),
            Action::Clone => {
                self.part.become_clone(&self.memory);
                self.connect_event_loop();
            }
            Action::Frame(bytes) => {
                if let Some(peer) = &self.peer {
                    // A full cable loses frames.
                    peer.send(&[&[0; 12], bytes].concat()).unwrap_or_default();
                }
            }
        }
    }

    /// Resets the device and sets it up as the specification wants it, with those of these features that it has.
    fn start(&mut self, features: u32) {
        for status in [0, 1, 3] {
            self.write(STATUS, status);
        }
        self.write(DEVICE_FEATURES_SELECT, 0);
        let offered = self.read(DEVICE_FEATURES);
        // VERSION_1 and RING_EVENT_IDX always.
        for (select, features) in [(0, offered & features | 1 << 29), (1, 1)] {
            self.write(DRIVER_FEATURES_SELECT, select);
            self.write(DRIVER_FEATURES, features);
        }
        self.write(STATUS, 0xb);
        self.next_slot = [0; QUEUES as usize];
        for queue in 0..QUEUES {
            let ring = Ring::new(queue, QUEUE_SIZE);
            ring.clear(&view(&self.memory));
            self.write(QUEUE_SELECT, queue.into());
            if self.read(QUEUE_MOST) >= QUEUE_SIZE.into() {
                self.write(QUEUE_LENGTH, QUEUE_SIZE.into());
                let places = [ring.descriptors().0, ring.avail_ring(), ring.used_ring()];
                for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(places) {
                    self.write(register, must(u32::try_from(address)));
                    self.write(register + 4, 0);
                }
                self.write(QUEUE_READY, 1);
            }
            self.rings[usize::from(queue)] = ring;
        }
        self.write(STATUS, DRIVER_OK);
    }

    /// Makes a chain of buffers available that begins with these bytes.
    fn send(&mut self, queue: u8, bytes: &[u8], pieces: &[Piece]) {
        let index = usize::from(queue % 4);
        let slot = self.next_slot[index];
        self.next_slot[index] = (slot + 1) % (QUEUE_SIZE / PER_SLOT);
        let ring = &mut self.rings[index];
        let memory = view(&self.memory);
        must(memory.write_slice(bytes, ring.slot_address(slot)));
        put_chain(ring, &memory, slot, pieces);
    }

    /// Lets the event loop do what there is to do, but not for ever: a guest may keep it busy.
    fn run_event_loop(&mut self) {
        for _ in 0..MOST_TURNS {
            if must(self.events.run_with_timeout(0)) == 0 {
                break;
            }
        }
    }

    /// After all that was done to it, the device works for a driver that resets it.
    fn expect_alive(&mut self) {
        self.start(u32::MAX);
        assert_eq!(self.read(STATUS), DRIVER_OK, "{:?}", self.kind);
        let (queue, bytes, pieces) = self.work();
        self.send(queue, &bytes, &pieces);
        self.write(NOTIFY, queue.into());
        let deadline = Instant::now() + ANSWER_DEADLINE;
        while self.used(queue) == 0 {
            assert!(Instant::now() < deadline, "no answer from {:?}", self.kind);
            must(self.events.run_with_timeout(100));
        }
    }

    /// Something that the device answers: a queue, what is to be in the buffers, and the buffers.
    fn work(&self) -> (u8, Vec<u8>, Vec<Piece>) {
        match self.kind {
            // VIRTIO_BLK_T_GET_ID.
            Kind::Disk | Kind::Overlay => (0, request(8, 0), vec![out(16), into(20), into(1)]),
            Kind::Card => (1, vec![0; 76], vec![out(76)]),
            Kind::Entropy => (0, Vec::new(), vec![into(32)]),
            Kind::Balloon => (3, Vec::new(), vec![into(4096)]),
        }
    }

    fn used(&self, queue: u8) -> u16 {
        let at = self.rings[usize::from(queue)].used_ring() + 2;
        must(view(&self.memory).read_obj(GuestAddress(at)))
    }

    fn write(&self, register: u64, value: u32) {
        self.bus.write(WINDOW + register, &value.to_le_bytes());
    }

    fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.bus.read(WINDOW + register, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

/// The header of a disk request.
fn request(kind: u8, sector: u64) -> Vec<u8> {
    let mut header = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    header.extend(sector.to_le_bytes());
    header
}
