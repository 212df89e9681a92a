//! The guest's end of the vsock device.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};
use proto::{HOST_CID, READY_LINE, READY_PORT};
use rustix::ioctl::{Getter, ioctl};

use crate::error::Error;
use crate::machine::uevent::Uevents;
use crate::say;

const DEVICE: &str = "/dev/vsock";
// _IO(7, 0xb9) of include/uapi/linux/vm_sockets.h.
type GetLocalCid = Getter<0x7b9, u32>;
/// VMADDR_CID_ANY, for listening and as the answer of a kernel without a device.
const ANY_CID: u32 = u32::MAX;
/// Well-known ids below this one belong to the hypervisor and the host.
const FIRST_GUEST_CID: u32 = 3;
const BACKLOG: i32 = 64;

/// The device, for questions about it.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl Device {
    /// Opens the device, which is there as soon as the kernel can do vsock at all.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            file: File::open(DEVICE).map_err(Error::file("open", DEVICE))?,
        })
    }

    /// The guest's context id, or `None` without a transport to the host.
    pub fn local_cid(&self) -> Option<u32> {
        // SAFETY: the number is IOCTL_VM_SOCKETS_GET_LOCAL_CID's, which gives a u32.
        let get = unsafe { GetLocalCid::new() };
        // SAFETY: the kernel writes the one u32 that the getter has room for.
        let cid = unsafe { ioctl(&self.file, get) }.ok()?;
        (FIRST_GUEST_CID..ANY_CID).contains(&cid).then_some(cid)
    }
}

/// Waits until the guest has a context id.
pub fn wait_for_device(uevents: &mut Uevents, timeout: Duration) -> Result<(), Error> {
    let is_there = || {
        Device::open()
            .ok()
            .and_then(|device| device.local_cid())
            .is_some()
    };
    if uevents.wait_until(timeout, is_there)? {
        return Ok(());
    }
    Err(Error::NoVsock(timeout.as_secs()))
}

/// Listens on `port` for the host, whatever the guest's context id is or becomes.
pub fn listener(port: u32) -> Result<OwnedFd, Error> {
    let bound = || -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        bind(socket.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        Ok(socket)
    };
    bound().map_err(|errno| Error::System {
        action: "listen on vsock",
        source: io::Error::other(format!("port {port}: {errno}")),
    })
}

/// Tells the host that the agent listens. A host that does not want to know is no error.
pub fn announce_ready() {
    let announce = || -> io::Result<()> {
        let socket = socket(
            AddressFamily::Vsock,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        match connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, READY_PORT)) {
            Err(nix::Error::ECONNRESET | nix::Error::ECONNREFUSED) => return Ok(()),
            result => result?,
        }
        rustix::io::write(&socket, READY_LINE)?;
        Ok(())
    };
    if let Err(error) = announce() {
        say(&format!(
            "Could not tell the host that the agent is ready: {error}"
        ));
    }
}
