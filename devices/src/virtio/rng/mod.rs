//! Virtio-rng: random bytes from the host's kernel (virtio 1.2, section 5.4).
//!
//! The device has no configuration and no state of its own: a clone needs its transport only. What the
//! guest's driver has fetched ahead is in the guest's memory, the same in every clone; the agent throws it
//! away.

#[cfg(test)]
mod tests;

use super::device::{DeviceError, DeviceKind, VirtioDevice};
use super::rings::Rings;
use rustix::rand::{GetRandomFlags, getrandom};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use vmm_sys_util::eventfd::EventFd;

const REQUEST_QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 64;
/// Most bytes for one buffer. Drivers take less than they ask for, and ask again.
const LARGEST_ANSWER: usize = 4096;
/// Bytes per turn, so that a guest that asks without end does not keep the event loop from others.
const BYTES_PER_TURN: usize = 16 * 1024;

/// Why there is no entropy device.
#[derive(Debug, thiserror::Error)]
pub enum RngError {
    /// No descriptors left, most likely.
    #[error("Cannot prepare the entropy device")]
    Prepare(#[source] io::Error),
}

/// The device. See the module's documentation.
#[derive(Debug)]
pub struct Rng {
    /// Readable when requests were left in the queue and no doorbell will remind us of them.
    again: EventFd,
    /// The driver uses the device and has not broken it.
    active: bool,
}

impl Rng {
    /// A device, new or in a clone.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> Result<Self, RngError> {
        let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
        Ok(Self {
            again: EventFd::new(flags).map_err(RngError::Prepare)?,
            active: false,
        })
    }

    /// A driver that breaks its queue is left alone until it resets the device.
    fn serve(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if !self.active {
            return Ok(());
        }
        let result = self.fill_all(rings);
        self.active = result.is_ok();
        result
    }

    /// Fills as many buffers as a turn allows; if there may be more, asks for another turn.
    fn fill_all(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut budget = BYTES_PER_TURN;
        let left = rings.answer_all(REQUEST_QUEUE, QUEUE_SIZE, |chain, rings| {
            let broken = |source| DeviceError::Ring {
                queue: REQUEST_QUEUE,
                source,
            };
            let mut room = chain.writer(rings.memory()).map_err(broken)?;
            let length = room.available_bytes().min(LARGEST_ANSWER).min(budget);
            let bytes = random(length).map_err(DeviceError::Backend)?;
            room.write_all(&bytes).map_err(DeviceError::Backend)?;
            budget -= length;
            let written = u32::try_from(length).unwrap_or(0);
            Ok(if budget == 0 {
                ControlFlow::Break(written)
            } else {
                ControlFlow::Continue(written)
            })
        })?;
        if left {
            self.again.write(1).map_err(DeviceError::Backend)?;
        }
        Ok(())
    }
}

/// So many random bytes. The kernel's generator is ready long before a VM is started, and does not
/// block then.
fn random(length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::NONBLOCK) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

impl VirtioDevice for Rng {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    /// There is no configuration space.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// The doorbell comes for whatever is in the queue.
    fn activate(&mut self, _features: u64, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.active = true;
        Ok(())
    }

    fn queue_notified(&mut self, _queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.serve(rings)
    }

    fn backend_fd(&self) -> Option<RawFd> {
        Some(self.again.as_raw_fd())
    }

    fn backend_ready(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        // Non-blocking: it fails only when somebody else has looked already.
        if self.again.read().is_ok() {
            self.serve(rings)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.active = false;
    }
}
