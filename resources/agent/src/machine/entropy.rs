//! Feeds the kernel's random number generator and makes it use what it got at once.

use std::fs::File;

use rustix::ioctl::{NoArg, Setter, ioctl};

use crate::error::Error;

const DEVICE: &str = "/dev/random";

/// The most bytes for one call of the kernel.
const CHUNK_BYTES: usize = 512;

/// struct rand_pool_info of include/uapi/linux/random.h with its buffer.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: i32,
    buffer_bytes: i32,
    buffer: [u8; CHUNK_BYTES],
}

// _IOW('R', 0x03, int[2]) and _IO('R', 0x07) of the same header.
type AddEntropy = Setter<0x4008_5203, RandPoolInfo>;
type ReseedCrng = NoArg<0x5207>;

/// The kernel's random number generator.
#[derive(Debug)]
pub struct Generator {
    device: File,
}

impl Generator {
    /// Opens the device.
    pub fn open() -> Result<Self, Error> {
        let device = File::options()
            .write(true)
            .open(DEVICE)
            .map_err(Error::file("open", DEVICE))?;
        Ok(Self { device })
    }

    /// Mixes `data` in, counted in full as entropy, and forces a reseed.
    pub fn reseed(&self, data: &[u8]) -> Result<(), Error> {
        for chunk in data.chunks(CHUNK_BYTES) {
            // SAFETY: the number is RNDADDENTROPY's, which takes this structure.
            let add = unsafe { AddEntropy::new(pool_info(chunk)) };
            // SAFETY: the kernel only reads the structure, whose `buffer_bytes` is within
            // `buffer`.
            unsafe { ioctl(&self.device, add) }
                .map_err(Error::system("credit entropy to /dev/random"))?;
        }
        // SAFETY: the number is RNDRESEEDCRNG's, which takes no argument.
        let reseed = unsafe { ReseedCrng::new() };
        // SAFETY: no memory of ours is involved.
        unsafe { ioctl(&self.device, reseed) }.map_err(Error::system("reseed /dev/random"))
    }
}

fn pool_info(chunk: &[u8]) -> RandPoolInfo {
    let mut buffer = [0; CHUNK_BYTES];
    let mut bytes = 0;
    for (slot, byte) in buffer.iter_mut().zip(chunk) {
        *slot = *byte;
        bytes += 1;
    }
    // The count is in bits. In bytes, as it is easily mistaken, an eighth would be counted and a
    // guest without other sources might not become ready.
    RandPoolInfo {
        entropy_bits: bytes * 8,
        buffer_bytes: bytes,
        buffer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_counted_in_bits_and_length_in_bytes() {
        let info = pool_info(&[7; 64]);
        assert_eq!((info.entropy_bits, info.buffer_bytes), (512, 64));
        assert_eq!(info.buffer.iter().filter(|byte| **byte == 7).count(), 64);
    }
}
