//! A guest with a virtio-vsock driver: real virtqueues in real guest memory.
//!
//! The driver keeps to RING_EVENT_IDX in both directions: it rings a doorbell only when the device
//! asked for it and looks for used buffers only after an interrupt. A notification that the device
//! forgets makes a test stop.

use super::pkt::{CID, Layout, Pkt};
use crate::irq::testing::CountingLine;
use crate::virtio::device::VirtioDevice;
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::rings::Rings;
use crate::virtio::testing::{PER_SLOT, Ring};
use crate::virtio::vsock::{EVENT_QUEUE, QUEUE_SIZES, RX_QUEUE, TX_QUEUE, Vsock, VsockConfig};
use std::collections::VecDeque;
use std::path::PathBuf;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 64 << 20;

/// A guest: memory, queues, driver, and the device under test.
pub struct Guest {
    pub device: Vsock,
    memory: GuestMemoryMmap,
    queues: Vec<Queue>,
    interrupt: VirtioInterrupt,
    line: CountingLine,
    interrupts_seen: usize,
    rings: Vec<Ring>,
    received: VecDeque<Pkt>,
    pub events: Vec<u32>,
    /// How RX buffers are laid out, and how long they are with the header.
    pub rx_layout: Layout,
    pub rx_length: u32,
    /// Event buffers are given back as soon as they were used.
    pub repost_events: bool,
    pub socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Guest {
    /// A booted guest with 64 RX buffers of 4 KiB and event buffers posted.
    pub fn new() -> Self {
        let mut guest = Self::unbooted();
        guest.boot(64);
        guest
    }

    /// A guest whose driver was not loaded yet.
    pub fn unbooted() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("v.sock");
        let cid = u32::try_from(CID).unwrap();
        let device = Vsock::new(&VsockConfig {
            cid,
            socket: socket.clone(),
        })
        .unwrap();
        let line = CountingLine::default();
        let rings = driver_rings();
        Self {
            device,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            queues: rings.iter().map(Ring::queue).collect(),
            interrupt: VirtioInterrupt::new(Box::new(line.clone())),
            line,
            interrupts_seen: 0,
            rings,
            received: VecDeque::new(),
            events: Vec::new(),
            rx_layout: Layout::Single,
            rx_length: 4096,
            repost_events: true,
            socket,
            _dir: dir,
        }
    }

    /// Loads the driver.
    pub fn boot(&mut self, rx_buffers: usize) {
        self.boot_with(rx_buffers, 3);
    }

    pub fn boot_with(&mut self, rx_buffers: usize, event_buffers: usize) {
        self.on_device(|device, rings| device.activate(1, rings).unwrap());
        for _ in 0..event_buffers {
            self.post_event();
        }
        for _ in 0..rx_buffers {
            self.post_rx();
        }
    }

    /// Replaces the device by the one of a clone of this guest, with its own socket.
    pub fn clone_device(&mut self, name: &str, cid: u32) {
        let state = self.device.save();
        let socket = self.socket.with_file_name(name);
        let config = VsockConfig {
            cid,
            socket: socket.clone(),
        };
        self.device = Vsock::restore(&config, &state).unwrap();
        self.socket = socket;
        self.queues = self
            .queues
            .iter()
            .map(|q| Queue::try_from(q.state()).unwrap())
            .collect();
        if state.active {
            self.on_device(|device, rings| device.activate(1, rings).unwrap());
            self.on_device(|device, rings| device.reset_connections(rings).unwrap());
        }
    }

    /// The driver resets the device and forgets its queues.
    pub fn reset(&mut self) {
        self.device.reset();
        self.rings = driver_rings();
        for ring in &self.rings {
            ring.clear(&self.memory);
        }
        self.queues = self.rings.iter().map(Ring::queue).collect();
        self.received.clear();
    }

    /// Puts an impossible index into the available ring.
    pub fn break_ring(&mut self, queue: u16) {
        self.rings[usize::from(queue)].break_available(&self.memory);
    }

    /// Writes to guest memory.
    pub fn poke(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    /// Puts the used ring where the available ring is, one entry ahead: each buffer that the device
    /// returns makes another one available.
    pub fn feed_available_ring(&mut self, queue: u16) {
        let queue = &mut self.queues[usize::from(queue)];
        let available = GuestAddress(queue.avail_ring());
        queue.try_set_used_ring_address(available).unwrap();
        queue.set_next_used(queue.next_avail().wrapping_add(1));
    }

    /// The context id as the device's configuration space has it.
    pub fn cid(&self) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// What the machine does when it goes on after a pause or restore.
    pub fn kick(&mut self) {
        for queue in 0..3 {
            self.ring(queue);
        }
    }

    pub fn on_device<R>(&mut self, f: impl FnOnce(&mut Vsock, &mut Rings<'_>) -> R) -> R {
        let mut rings = Rings::new(&self.memory, &mut self.queues, &self.interrupt);
        f(&mut self.device, &mut rings)
    }

    pub fn ring(&mut self, queue: u16) {
        self.on_device(|device, rings| device.queue_notified(queue, rings).unwrap());
    }

    /// One turn of the event loop, when there is something to do within `ms` milliseconds.
    pub fn turn(&mut self, ms: u16) -> bool {
        let fd = self.device.backend_fd().unwrap();
        let mut poll = libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, i32::from(ms)) } > 0;
        if ready {
            self.on_device(|device, rings| device.backend_ready(rings).unwrap());
        }
        ready
    }

    /// Event loop turns until nothing is left to do.
    pub fn settle(&mut self) {
        while self.turn(0) {}
    }

    pub fn post_rx(&mut self) {
        let ring = &mut self.rings[usize::from(RX_QUEUE)];
        let slot = ring.free.pop_front().unwrap();
        let lengths = self.rx_layout.lengths(self.rx_length);
        if ring.add(&self.memory, slot, &lengths, true) {
            self.ring(RX_QUEUE);
        }
    }

    pub fn post_event(&mut self) {
        let ring = &mut self.rings[usize::from(EVENT_QUEUE)];
        let slot = ring.free.pop_front().unwrap();
        if ring.add(&self.memory, slot, &[4], true) {
            self.ring(EVENT_QUEUE);
        }
    }

    /// Sends a packet in one descriptor.
    pub fn send(&mut self, packet: &Pkt) {
        self.send_as(packet, &Layout::Single);
    }

    pub fn send_as(&mut self, packet: &Pkt, layout: &Layout) {
        let mut bytes = packet.header();
        bytes.extend(&packet.data);
        self.send_raw(&bytes, layout);
    }

    /// Sends bytes that may be no packet at all.
    pub fn send_raw(&mut self, bytes: &[u8], layout: &Layout) {
        if self.queue_raw(bytes, layout) {
            self.ring(TX_QUEUE);
        }
    }

    /// Puts bytes into the TX queue without a doorbell; true when the device wants one.
    pub fn queue_raw(&mut self, bytes: &[u8], layout: &Layout) -> bool {
        self.handle_interrupt();
        let ring = &mut self.rings[usize::from(TX_QUEUE)];
        let slot = ring.free.pop_front().expect("device returns no TX buffers");
        self.memory
            .write_slice(bytes, ring.slot_address(slot))
            .unwrap();
        let lengths = layout.lengths(u32::try_from(bytes.len()).unwrap());
        ring.add(&self.memory, slot, &lengths, false)
    }

    /// Makes raw descriptors available in `queue` and rings: address, length, flags, next.
    pub fn send_descriptors(&mut self, queue: u16, descriptors: &[(u64, u32, u16)]) {
        self.handle_interrupt();
        let ring = &mut self.rings[usize::from(queue)];
        let slot = ring.free.pop_front().unwrap();
        let head = slot * PER_SLOT;
        for (number, (address, length, flags)) in (0..).zip(descriptors) {
            let address = GuestAddress(*address);
            ring.put_descriptor(&self.memory, head + number, address, *length, *flags);
        }
        ring.make_available(&self.memory, head);
        self.ring(queue);
    }

    /// TX buffers that the device has not returned.
    pub fn tx_in_flight(&mut self) -> usize {
        self.handle_interrupt();
        usize::from(QUEUE_SIZES[1] / PER_SLOT) - self.rings[usize::from(TX_QUEUE)].free.len()
    }

    /// The next packet for the guest that was announced by an interrupt.
    pub fn receive(&mut self) -> Option<Pkt> {
        self.handle_interrupt();
        self.received.pop_front()
    }

    /// The next packet, waiting for host programs to do something for at most 20 s.
    pub fn wait(&mut self) -> Pkt {
        for _ in 0..200 {
            if let Some(packet) = self.receive() {
                return packet;
            }
            self.turn(100);
        }
        panic!("no packet for the guest");
    }

    /// Handles everything that is pending and expects nothing for the guest.
    pub fn expect_nothing(&mut self) {
        self.settle();
        assert_eq!(self.receive(), None);
    }

    pub fn handle_interrupt(&mut self) {
        let raised = self.line.raised();
        if std::mem::replace(&mut self.interrupts_seen, raised) == raised {
            return;
        }
        self.interrupt.acknowledge(3);
        while let Some((slot, length)) = self.rings[0].take_used(&self.memory) {
            if length > 0 {
                let mut bytes = vec![0; length as usize];
                self.memory
                    .read_slice(&mut bytes, self.rings[0].slot_address(slot))
                    .unwrap();
                self.received.push_back(Pkt::parse(&bytes));
            }
            self.rings[0].free.push_back(slot);
            self.post_rx();
        }
        while let Some((slot, _)) = self.rings[1].take_used(&self.memory) {
            self.rings[1].free.push_back(slot);
        }
        while let Some((slot, length)) = self.rings[2].take_used(&self.memory) {
            assert_eq!(length, 4);
            self.events.push(
                self.memory
                    .read_obj(self.rings[2].slot_address(slot))
                    .unwrap(),
            );
            self.rings[2].free.push_back(slot);
            if self.repost_events {
                self.post_event();
            }
        }
    }
}

fn driver_rings() -> Vec<Ring> {
    let sizes = (0..).zip(QUEUE_SIZES);
    sizes.map(|(index, size)| Ring::new(index, size)).collect()
}
