//! What frames go to and come from.

use super::HEADER_LENGTH;
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

// From include/uapi/linux/if_tun.h: _IOW('T', 208, unsigned int) and _IOW('T', 216, int).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// The host's end of the cable. Frames have the header of virtio in front.
pub trait FramePort: Send + Debug {
    /// Readable when there is a frame.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Says what may be left undone in frames for the guest, in TUN_F_ flags.
    ///
    /// # Errors
    /// The port cannot do that.
    fn set_offloads(&mut self, flags: u32) -> io::Result<()>;

    /// Reads one frame, and cuts off what is longer than `frame`. Does not block.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; another when the port is not usable.
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize>;

    /// Sends one frame. Does not block.
    ///
    /// # Errors
    /// The frame is not one, or there is no room, or the port is not usable.
    fn send(&mut self, frame: &[u8]) -> io::Result<()>;
}

/// A tap interface, whose descriptor was opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR.
#[derive(Debug)]
pub struct TapPort(File);

impl TapPort {
    /// Prepares an open tap interface.
    ///
    /// # Errors
    /// It is none, or knows no such header.
    pub fn new(tap: File) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&tap)?;
        rustix::fs::fcntl_setfl(&tap, flags | rustix::fs::OFlags::NONBLOCK)?;
        let length = libc::c_int::try_from(HEADER_LENGTH).unwrap_or(libc::c_int::MAX);
        // SAFETY: the call reads one int behind the pointer, which lives until it returns.
        let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) };
        succeeded(result)?;
        Ok(Self(tap))
    }
}

/// Opens the tap interface `name`; where there is none it is made, and goes with its last descriptor.
///
/// # Errors
/// There is no /dev/net/tun, or the kernel refuses: `EBUSY` when somebody else has it, `EINVAL` when it is
/// no tap of one queue, `EPERM` without the right to administer networks. `InvalidInput` when the name is
/// too long.
pub fn open_tap(name: &str) -> io::Result<File> {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: the structure is plain data, for which zeroes are fine.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the call reads and writes one ifreq behind the pointer, which lives until it returns.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETIFF, &raw mut request) };
    succeeded(result)?;
    Ok(tap)
}

impl FramePort for TapPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn set_offloads(&mut self, flags: u32) -> io::Result<()> {
        // SAFETY: the call takes its argument by value and touches no memory of ours.
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        };
        succeeded(result)
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        self.0.read(frame)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        // A tap takes a frame as a whole.
        self.0.write(frame).map(|_sent| ())
    }
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
