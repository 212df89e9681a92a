//! A guest with a virtio-net driver, and a cable that the test holds the other end of.

use crate::irq::testing::CountingLine;
use crate::virtio::device::{DeviceError, VirtioDevice};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::net::{
    FramePort, HEADER_LENGTH, MacAddress, Net, QUEUE_SIZE, RECEIVE_QUEUE, TRANSMIT_QUEUE,
};
use crate::virtio::rings::Rings;
use crate::virtio::testing::Ring;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use virtio_queue::Queue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const MEMORY: usize = 64 << 20;
pub const OURS: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
pub const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

/// A port that is a socket, and can be cut.
#[derive(Debug)]
pub struct Cable {
    socket: UnixDatagram,
    pub fate: Arc<Mutex<Fate>>,
}

#[derive(Debug, Default)]
pub struct Fate {
    pub gone: bool,
    pub offloads: Option<u32>,
}

impl Cable {
    pub fn new() -> (Self, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let fate = Arc::default();
        (Self { socket: ours, fate }, theirs)
    }

    fn check(&self) -> io::Result<()> {
        if self.fate.lock().unwrap().gone {
            return Err(io::Error::from_raw_os_error(libc::EBADFD));
        }
        Ok(())
    }
}

impl FramePort for Cable {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn set_offloads(&mut self, flags: u32) -> io::Result<()> {
        self.fate.lock().unwrap().offloads = Some(flags);
        Ok(())
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.socket.recv(frame)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.check()?;
        self.socket.send(frame).map(|_| ())
    }
}

/// Memory, queues, driver, and the device under test.
pub struct Driver {
    pub device: Net,
    pub memory: GuestMemoryMmap,
    pub receive: Ring,
    pub transmit: Ring,
    pub far_end: UnixDatagram,
    pub fate: Arc<Mutex<Fate>>,
    pub line: CountingLine,
    features: u64,
    queues: Vec<Queue>,
    interrupt: VirtioInterrupt,
}

impl Driver {
    /// A booted guest that took every feature.
    pub fn new() -> Self {
        let (cable, far_end) = Cable::new();
        let fate = cable.fate.clone();
        let device = Net::new(OURS, Some(Box::new(cable))).unwrap();
        let line = CountingLine::default();
        let mut driver = Self {
            features: device.features(),
            device,
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            receive: Ring::new(RECEIVE_QUEUE, QUEUE_SIZE),
            transmit: Ring::new(TRANSMIT_QUEUE, QUEUE_SIZE),
            far_end,
            fate,
            queues: Vec::new(),
            interrupt: VirtioInterrupt::new(Box::new(line.clone())),
            line,
        };
        driver.boot(driver.features);
        driver
    }

    /// Loads the driver; again, after a reset.
    pub fn boot(&mut self, features: u64) {
        self.features = features;
        self.device.reset();
        self.receive = Ring::new(RECEIVE_QUEUE, QUEUE_SIZE);
        self.transmit = Ring::new(TRANSMIT_QUEUE, QUEUE_SIZE);
        self.receive.clear(&self.memory);
        self.transmit.clear(&self.memory);
        self.queues = vec![self.receive.queue(), self.transmit.queue()];
        self.activate().unwrap();
    }

    /// Goes on as a clone whose card has no port yet.
    pub fn clone_device(&mut self) {
        self.device = Net::restore(&self.device.save()).unwrap();
        self.activate().unwrap();
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let features = self.features;
        self.on_device(|device, rings| device.activate(features, rings))
    }

    pub fn on_device<R>(&mut self, f: impl FnOnce(&mut Net, &mut Rings<'_>) -> R) -> R {
        let mut rings = Rings::new(&self.memory, &mut self.queues, &self.interrupt);
        f(&mut self.device, &mut rings)
    }

    pub fn notify(&mut self, queue: u16) -> Result<(), DeviceError> {
        self.on_device(|device, rings| device.queue_notified(queue, rings))
    }

    /// Gives the device buffers for frames: one chain for each list of lengths.
    pub fn add_buffers(&mut self, chains: &[&[u32]]) {
        for lengths in chains {
            let slot = self.receive.free.pop_front().unwrap();
            self.receive.add(&self.memory, slot, lengths, true);
        }
        self.notify(RECEIVE_QUEUE).unwrap();
    }

    /// Puts a frame into the queue without a doorbell.
    pub fn queue_frame(&mut self, frame: &[u8], lengths: &[u32]) {
        let slot = self.transmit.free.pop_front().unwrap();
        let address = self.transmit.slot_address(slot);
        self.memory.write_slice(frame, address).unwrap();
        self.transmit.add(&self.memory, slot, lengths, false);
    }

    pub fn send(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap();
        self.queue_frame(frame, &[length]);
        self.notify(TRANSMIT_QUEUE).unwrap();
    }

    /// Serves the back end for as long as it asks for it; how often.
    pub fn run(&mut self) -> usize {
        for turns in 0..1000 {
            if !self.wants_a_turn() {
                return turns;
            }
            self.on_device(|device, rings| device.backend_ready(rings).unwrap());
        }
        panic!("the device keeps the event loop spinning");
    }

    pub fn wants_a_turn(&self) -> bool {
        let fd = self.device.backend_fd().unwrap();
        // SAFETY: the descriptor is the device's, which lives longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let now = Timespec::default();
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        poll(&mut fds, Some(&now)).unwrap() > 0
    }

    /// The next buffer that the device used: its bytes.
    pub fn take_received(&mut self) -> Option<Vec<u8>> {
        let (slot, length) = self.receive.take_used(&self.memory)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        let address = self.receive.slot_address(slot);
        self.memory.read_slice(&mut bytes, address).unwrap();
        self.receive.free.push_back(slot);
        Some(bytes)
    }

    /// What came out at the far end.
    pub fn arrived(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 0x2_0000];
        let length = self.far_end.recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    pub fn status(&self) -> u8 {
        let mut status = [0];
        self.device.read_config(6, &mut status);
        status[0]
    }
}

/// A frame with its header: from `source`, with a payload that `seed` decides.
pub fn frame(source: MacAddress, length: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER_LENGTH];
    frame.extend([0xff; 6]);
    frame.extend(source.0);
    frame.extend((0..length).map(|n| u8::try_from(n % 251).unwrap() ^ seed));
    frame
}
