//! The devices that not every machine has, each alone on a bus with the event loop that serves it. Their
//! host side is files, a socket in place of a tap, and memory that only looks at what is given back.

use crate::machine::{line, lock, must};
use devices::bus::SharedDevice;
use devices::virtio::balloon::{Balloon, FreeMemory};
use devices::virtio::blk::{Blk, Image};
use devices::virtio::device::VirtioDevice;
use devices::virtio::mmio::{MmioTransport, SharedMemory};
use devices::virtio::net::{FramePort, MacAddress, Net};
use devices::virtio::rng::Rng;
use event_manager::MutEventSubscriber;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryBackend};

/// Bytes of a disk.
pub const DISK_BYTES: u64 = 256 << 10;
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);
const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A disk of one file.
    Disk,
    /// A disk above another that does not change.
    Overlay,
    /// A network card.
    Card,
    /// The entropy device.
    Entropy,
    /// The balloon device.
    Balloon,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Disk,
        Self::Overlay,
        Self::Card,
        Self::Entropy,
        Self::Balloon,
    ];
}

/// A device on a bus, of whatever kind.
pub trait Part {
    /// What the guest reads and writes.
    fn registers(&self) -> SharedDevice;
    /// What the event loop serves.
    fn subscriber(&self) -> Arc<Mutex<dyn MutEventSubscriber + Send>>;
    /// Rings the doorbell of a queue as KVM does.
    fn doorbell(&self, queue: usize);
    /// What the device does when the machine goes on after a pause.
    fn kick(&self);
    /// Goes on as a clone of itself; the event loop has to be told of its new descriptors.
    fn become_clone(&self, memory: &SharedMemory);
}

/// A device and how it is made again.
struct Device<D> {
    transport: Arc<Mutex<MmioTransport<D>>>,
    before_save: fn(&mut MmioTransport<D>),
    again: Box<dyn Fn(&D) -> D>,
}

/// The device after power-on, and the other end of its cable if it has one.
pub fn power_on(kind: Kind, memory: &SharedMemory) -> (Box<dyn Part>, Option<UnixDatagram>) {
    match kind {
        Kind::Disk => (disk(memory, Image::raw(file(), DISK_BYTES)), None),
        Kind::Overlay => {
            let image = Image::overlay(file(), file(), DISK_BYTES);
            (disk(memory, image), None)
        }
        Kind::Card => {
            let (port, peer) = must(UnixDatagram::pair());
            must(port.set_nonblocking(true));
            must(peer.set_nonblocking(true));
            (card(memory, port), Some(peer))
        }
        Kind::Entropy => {
            let again = |_: &Rng| must(Rng::new());
            (part(memory, must(Rng::new()), |_| (), again), None)
        }
        Kind::Balloon => {
            let memory_of_host = memory.clone();
            let again =
                move |_: &Balloon| must(Balloon::new(Box::new(Host(memory_of_host.clone()))));
            let balloon = must(Balloon::new(Box::new(Host(memory.clone()))));
            (part(memory, balloon, |_| (), again), None)
        }
    }
}

fn disk(memory: &SharedMemory, image: Image) -> Box<dyn Part> {
    let make = must(Blk::new(image.clone(), "hostile", false));
    let settle = |disk: &mut MmioTransport<Blk>| {
        disk.with_backend(|device, rings| device.settle(rings, SETTLE_DEADLINE));
        must(disk.device().check_settled());
    };
    let again = move |disk: &Blk| must(Blk::restore(image.clone(), "hostile", false, &disk.save()));
    part(memory, make, settle, again)
}

fn card(memory: &SharedMemory, port: UnixDatagram) -> Box<dyn Part> {
    let port = Arc::new(port);
    let plug = |port: &Arc<UnixDatagram>| Box::new(Cable(port.clone()));
    let net = must(Net::new(MAC, Some(plug(&port))));
    let again = move |net: &Net| {
        let mut net = must(Net::restore(&net.save()));
        must(net.connect(MacAddress([2, 0, 0, 0, 0, 2]), plug(&port)));
        net
    };
    part(memory, net, |_| (), again)
}

fn part<D: VirtioDevice + 'static>(
    memory: &SharedMemory,
    device: D,
    before_save: fn(&mut MmioTransport<D>),
    again: impl Fn(&D) -> D + 'static,
) -> Box<dyn Part> {
    let transport = must(MmioTransport::new(device, memory.clone(), must(line())));
    Box::new(Device {
        transport: Arc::new(Mutex::new(transport)),
        before_save,
        again: Box::new(again),
    })
}

impl<D: VirtioDevice + 'static> Part for Device<D> {
    fn registers(&self) -> SharedDevice {
        self.transport.clone()
    }

    fn subscriber(&self) -> Arc<Mutex<dyn MutEventSubscriber + Send>> {
        self.transport.clone()
    }

    fn doorbell(&self, queue: usize) {
        if let Some(doorbell) = lock(&self.transport).doorbells().get(queue) {
            must(doorbell.write(1));
        }
    }

    fn kick(&self) {
        lock(&self.transport).kick();
    }

    fn become_clone(&self, memory: &SharedMemory) {
        let mut transport = lock(&self.transport);
        (self.before_save)(&mut transport);
        let device = (self.again)(transport.device());
        let state = transport.save();
        *transport = must(MmioTransport::restore(
            device,
            memory.clone(),
            must(line()),
            &state,
        ));
        transport.kick();
    }
}

fn file() -> Arc<File> {
    let file = must(tempfile::tempfile());
    must(file.set_len(DISK_BYTES));
    Arc::new(file)
}

/// Looks whether what is given back is the guest's, and keeps it.
#[derive(Debug)]
struct Host(SharedMemory);

impl FreeMemory for Host {
    fn give_back(&self, start: GuestAddress, length: u64) -> io::Result<()> {
        let whole = start.0.is_multiple_of(4096) && length.is_multiple_of(4096) && length > 0;
        assert!(whole, "gives back {length:#x} at {start:?}");
        let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let is_memory = self.0.memory().check_range(start, length);
        is_memory
            .then_some(())
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// A card's end of a cable without a tap.
#[derive(Debug)]
struct Cable(Arc<UnixDatagram>);

impl FramePort for Cable {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offloads(&mut self, _flags: u32) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        self.0.recv(frame)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(drop)
    }
}
