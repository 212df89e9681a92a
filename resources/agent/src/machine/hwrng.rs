//! Throws away what the guest's kernel has fetched ahead from its entropy device.
//!
//! The driver and the kernel's layer above it keep a buffer each, so the first bytes that a clone reads
//! from `/dev/hwrng` would be the template's, and the same in all clones.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};

use crate::error::Error;

const DEVICE: &str = "/dev/hwrng";
/// Which source is read by way of the device.
const CURRENT: &str = "/sys/class/misc/hw_random/rng_current";
/// How the kernel calls the VMM's device, before a number.
const OURS: &str = "virtio_rng";
/// Both buffers have one cache line, 128 bytes at most.
const STALE_BYTES: usize = 512;

/// Reads what is stale. Does nothing in a guest without the VMM's entropy device.
pub fn discard_stale() -> Result<(), Error> {
    match fs::read_to_string(CURRENT) {
        Ok(current) if current.starts_with(OURS) => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("read", CURRENT)(error)),
    }
    let mut device = match File::open(DEVICE) {
        Ok(device) => device,
        // The guest has no such file: then nothing in it can read it either.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("open", DEVICE)(error)),
    };
    let mut stale = [0; STALE_BYTES];
    device
        .read_exact(&mut stale)
        .map_err(Error::file("read", DEVICE))
}
