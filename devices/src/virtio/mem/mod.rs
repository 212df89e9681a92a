//! Virtio-mem: memory that the guest plugs and unplugs while it runs (virtio 1.2, section 5.15).
//!
//! The device manages a [`Region`] of guest physical addresses that is not part of the guest's RAM
//! at boot, in blocks of 2 MiB. The owner asks for a size ([`Mem::set_requested_size`]); the guest's driver
//! sees it in the configuration space, picks blocks and plugs them, or unplugs some, and
//! [`PluggedHandle`] tells the owner how far it is.
//!
//! | file | job |
//! |---|---|
//! | `region` | where the memory is, and the block as the unit |
//! | `blocks`, `plug_map` | which blocks are plugged, and how many may be |
//! | `request` | the driver's requests in virtqueue buffers |
//! | `backend` | how the owner gets unplugged memory back |
//! | `plugged` | how the owner waits for the guest |
//! | `state` | what a clone has to know |
//!
//! A guest can touch memory of its usable part that it has not plugged: the feature that forbids it
//! (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE) is not offered, as drivers older than Linux 5.16 do not
//! know it. The owner must be able to afford the whole usable part.

mod backend;
mod blocks;
mod plug_map;
mod plugged;
mod region;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use backend::RegionMemory;
pub use plug_map::{PlugMap, PluggedRange, SizeError};
pub use plugged::PluggedHandle;
pub use region::{BLOCK_SIZE, LARGEST_REGION, Region, RegionError};
pub use state::{BlockRun, MEM_STATE_VERSION, MemState, MemStateError};

use super::device::{DeviceError, DeviceKind, VirtioDevice};
use super::rings::{Chain, Rings};
use blocks::Occupancy;
use request::{ANSWER_LENGTH, Answer, AnswerRoom, Claim, Request, RequestError};
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::fd::{AsRawFd, RawFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

const REQUEST_QUEUE: u16 = 0;
const QUEUE_SIZE: u16 = 128;

/// Why there is no memory device.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// No descriptors left, most likely.
    #[error("Cannot prepare the memory device")]
    Prepare(#[source] io::Error),
}

/// The device. See the module's documentation.
#[derive(Debug)]
pub struct Mem {
    map: PlugMap,
    memory: Box<dyn RegionMemory>,
    plugged: PluggedHandle,
    /// Readable when requests were left in the queue and no doorbell will remind us of them.
    again: EventFd,
    /// The driver uses the device and has not broken it.
    active: bool,
    /// A failure of the back end is in the log; a guest must not fill it.
    discard_failed: bool,
}

impl Mem {
    /// The device of a new machine, [`PlugMap::new`], or that of a clone, whose [`PlugMap`] comes
    /// from a [`MemState`]. Then `memory` holds what the template's guest had in its plugged blocks.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new(map: PlugMap, memory: Box<dyn RegionMemory>) -> Result<Self, MemError> {
        let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
        Ok(Self {
            plugged: PluggedHandle::new(map.plugged_size()),
            map,
            memory,
            again: EventFd::new(flags).map_err(MemError::Prepare)?,
            active: false,
            discard_failed: false,
        })
    }

    /// What a clone has to know.
    #[must_use]
    pub fn save(&self) -> MemState {
        MemState::from(&self.map)
    }

    /// What is plugged, usable and requested.
    #[must_use]
    pub fn map(&self) -> &PlugMap {
        &self.map
    }

    /// How much is plugged, also for other threads and to wait for.
    #[must_use]
    pub fn plugged(&self) -> PluggedHandle {
        self.plugged.clone()
    }

    /// Asks the guest to have `size` bytes of memory plugged: a multiple of [`BLOCK_SIZE`], at most
    /// the length of the region.
    ///
    /// There must be memory behind [`PlugMap::usable_size_for`] that size already. To be called
    /// through [`super::mmio::MmioTransport::change_config`], which tells the driver; asking for
    /// the same size again makes the driver try again.
    ///
    /// # Errors
    /// The size is not possible; nothing has changed.
    pub fn set_requested_size(&mut self, size: u64) -> Result<(), SizeError> {
        self.map.request(size)
    }

    /// Answers requests. A driver that breaks its queue is left alone until it resets the device.
    fn serve(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if !self.active {
            return Ok(());
        }
        let result = self.answer_all(rings);
        self.active = result.is_ok();
        result
    }

    /// Answers as many requests as fit the queue; if there may be more, asks for another turn.
    fn answer_all(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let left = rings.answer_all(REQUEST_QUEUE, QUEUE_SIZE, |chain, rings| {
            Ok(ControlFlow::Continue(self.answer_chain(chain, rings)))
        })?;
        if left {
            self.again.write(1).map_err(DeviceError::Backend)?;
        }
        Ok(())
    }

    /// Answers the request in a chain, and announces what it changed; the bytes written.
    fn answer_chain(&mut self, chain: Chain<'_>, rings: &Rings<'_>) -> u32 {
        let before = (self.map.plugged_size(), self.map.usable_size());
        let answered = self.answer(chain, rings.memory());
        if before != (self.map.plugged_size(), self.map.usable_size()) {
            // No interrupt: the driver knows what it asked for (virtio 1.2, section 5.15.4.2).
            rings.config_changed();
            self.plugged.report(self.map.plugged_size());
        }
        match answered {
            Ok(()) => ANSWER_LENGTH.into(),
            Err(error) => {
                tracing::debug!(%error, "Memory device cannot answer");
                0
            }
        }
    }

    /// A chain without room for an answer is no request: nothing is done that nobody hears of.
    fn answer(&mut self, chain: Chain<'_>, memory: &GuestMemoryMmap) -> Result<(), RequestError> {
        let room = AnswerRoom::find(memory, chain.clone(), QUEUE_SIZE)?;
        let answer = match Request::read(memory, chain) {
            Ok(request) => self.handle(request),
            Err(error) => {
                tracing::debug!(%error, "Memory device got no request");
                Answer::Error
            }
        };
        room.fill(answer)
    }

    fn handle(&mut self, request: Request) -> Answer {
        match request {
            Request::Plug(claim) => self.plug(claim),
            Request::Unplug(claim) => self.unplug(claim),
            Request::UnplugAll => self.unplug_all(),
            Request::State(claim) => self.state(claim),
        }
    }

    fn plug(&mut self, claim: Claim) -> Answer {
        match self.map.range_that_is(claim, Occupancy::Unplugged) {
            None => Answer::Error,
            Some(range) if self.map.plug(&range) => Answer::Done,
            Some(_) => Answer::Refused,
        }
    }

    fn unplug(&mut self, claim: Claim) -> Answer {
        match self.map.range_that_is(claim, Occupancy::Plugged) {
            None => Answer::Error,
            Some(range) if self.discard(&range) => {
                self.map.unplug(&range);
                Answer::Done
            }
            Some(_) => Answer::Busy,
        }
    }

    /// Discards the whole usable part, as what was never plugged may have been written to as well.
    fn unplug_all(&mut self) -> Answer {
        if !self.discard(&self.map.usable()) {
            return Answer::Busy;
        }
        self.map.unplug_all();
        Answer::Done
    }

    fn state(&self, claim: Claim) -> Answer {
        let range = self.map.range(claim);
        range.map_or(Answer::Error, |range| {
            Answer::State(self.map.occupancy(&range))
        })
    }

    fn discard(&mut self, range: &Range<u32>) -> bool {
        if range.is_empty() {
            return true;
        }
        let offset = region::bytes(range.start);
        let length = region::bytes(range.end - range.start);
        let result = self.memory.discard(offset, length);
        if let Err(error) = &result
            && !self.discard_failed
        {
            tracing::warn!(%error, offset, length, "Unplugged memory cannot be given back");
            self.discard_failed = true;
        }
        result.is_ok()
    }
}

impl VirtioDevice for Mem {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Mem
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    /// The layout of virtio 1.2, section 5.15.4.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let fields = [
            BLOCK_SIZE,
            // Node and padding: the memory belongs to no node.
            0,
            self.map.region().start().0,
            self.map.region().length(),
            self.map.usable_size(),
            self.map.plugged_size(),
            self.map.requested_size(),
        ];
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = fields.into_iter().flat_map(u64::to_le_bytes).skip(skipped);
        for (byte, value) in data.iter_mut().zip(bytes) {
            *byte = value;
        }
    }

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

    /// Leaves plugged memory as it is, as the specification demands (section 5.15.5.2).
    fn reset(&mut self) {
        self.active = false;
    }
}
