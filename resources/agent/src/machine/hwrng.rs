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

/// The VMM's entropy device; none in a guest that has no such device, or no file of it.
#[derive(Debug)]
pub struct Device(Option<File>);

impl Device {
    /// Looks for it, before there is a clone: in one the search costs more than a hundred page faults.
    pub fn find() -> Result<Self, Error> {
        match fs::read_to_string(CURRENT) {
            Ok(current) if current.starts_with(OURS) => {}
            Ok(_) => return Ok(Self(None)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self(None)),
            Err(error) => return Err(Error::file("read", CURRENT)(error)),
        }
        match File::open(DEVICE) {
            Ok(device) => Ok(Self(Some(device))),
            // Then nothing in the guest can read it either.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self(None)),
            Err(error) => Err(Error::file("open", DEVICE)(error)),
        }
    }

    /// Reads what is stale.
    pub fn discard_stale(self) -> Result<(), Error> {
        let Self(Some(mut device)) = self else {
            return Ok(());
        };
        let mut stale = [0; STALE_BYTES];
        device
            .read_exact(&mut stale)
            .map_err(Error::file("read", DEVICE))
    }
}
