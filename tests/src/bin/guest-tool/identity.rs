//! What tells this guest from others.

use std::fs::File;

use rustix::ioctl::{Getter, ioctl};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::Error;

// _IO(7, 0xb9) of include/uapi/linux/vm_sockets.h.
type GetLocalCid = Getter<0x7b9, u32>;
/// What a kernel without a device answers.
const NO_CID: u32 = u32::MAX;
/// Smaller ones are not a guest's.
const FIRST_CID: u32 = 3;

/// The guest's vsock context id, when the device is there.
pub fn local_cid() -> Option<u32> {
    let device = File::open("/dev/vsock").ok()?;
    // SAFETY: the number is IOCTL_VM_SOCKETS_GET_LOCAL_CID's, which gives a u32.
    let get = unsafe { GetLocalCid::new() };
    // SAFETY: the kernel writes the one u32 that the getter has room for.
    let cid = unsafe { ioctl(&device, get) }.ok()?;
    (FIRST_CID..NO_CID).contains(&cid).then_some(cid)
}

/// Prints it.
pub fn cid() -> Result<(), Error> {
    println!("{}", local_cid().ok_or("no vsock device")?);
    Ok(())
}

/// Prints random bytes, straight from the kernel.
pub fn random(bytes: usize) -> Result<(), Error> {
    let mut buffer = vec![0; bytes];
    let filled = getrandom(&mut buffer, GetRandomFlags::empty())?;
    if filled != bytes {
        return Err(format!("{filled} random bytes, expected {bytes}").into());
    }
    let hex: String = buffer.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{hex}");
    Ok(())
}
