//! Virtio-balloon: the guest gives back memory that it does not use, and tells how much it has (virtio
//! 1.2, section 5.5).
//!
//! The balloon itself stays empty: memory is added and taken away with virtio-mem. Of the device there is
//! - **free page reporting**: the guest's driver names pages that nothing uses, 2 MiB and more at a time, and
//!   they go back to the host until the guest touches them again;
//! - **statistics**: the driver's buffer with them stays in its queue until the owner asks for newer ones.
//!
//! So the device has no state of its own, and a clone needs its transport only.

mod stats;
#[cfg(test)]
mod tests;

pub use stats::{GuestMemoryStats, StatsHandle};

use super::device::{DeviceError, DeviceKind, VirtioDevice};
use super::rings::{Chain, Rings};
use std::fmt::Debug;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

const INFLATE_QUEUE: u16 = 0;
const DEFLATE_QUEUE: u16 = 1;
/// The queues of features that were not agreed on are not there, and those behind them move up.
const FIRST_OPTIONAL_QUEUE: u16 = 2;
const QUEUE_SIZES: [u16; 4] = [QUEUE_SIZE; 4];
const QUEUE_SIZE: u16 = 64;
/// `VIRTIO_BALLOON_F_STATS_VQ`.
const STATS_FEATURE: u64 = 1 << 1;
/// `VIRTIO_BALLOON_F_REPORTING`.
const REPORTING_FEATURE: u64 = 1 << 5;
/// Most bytes of statistics that are read: more than there are tags.
const MOST_STATS_BYTES: u64 = 1024;
/// Bytes that go back in one turn, so that others are served in between.
const BYTES_PER_TURN: u64 = 256 << 20;
/// What memory is given back in.
const PAGE: u64 = 4096;

/// How memory goes back to the host.
pub trait FreeMemory: Send + Debug {
    /// Gives back whole pages that the guest does not use. Their content is lost; what the guest finds there
    /// later is its own from before, or zeros.
    ///
    /// # Errors
    /// It is no memory of the guest's, or the host does not take it.
    fn give_back(&self, start: GuestAddress, length: u64) -> io::Result<()>;
}

/// Why there is no balloon device.
#[derive(Debug, thiserror::Error)]
pub enum BalloonError {
    /// No descriptors left, most likely.
    #[error("Cannot prepare the balloon device")]
    Prepare(#[source] io::Error),
}

/// The device. See the module's documentation.
#[derive(Debug)]
pub struct Balloon {
    memory: Box<dyn FreeMemory>,
    stats: StatsHandle,
    /// Readable when requests were left in a queue and no doorbell will remind us of them.
    again: EventFd,
    queues: OptionalQueues,
    /// The driver uses the device and has not broken it.
    active: bool,
    /// Newer statistics are wanted, and the driver has not sent them.
    stats_wanted: bool,
    /// A failure of the back end is in the log; a guest must not fill it.
    failed: bool,
}

/// Where the queues are that depend on features.
#[derive(Debug, Clone, Copy, Default)]
struct OptionalQueues {
    stats: Option<u16>,
    reporting: Option<u16>,
}

impl OptionalQueues {
    fn of(features: u64) -> Self {
        let has = |feature| features & feature != 0;
        let stats = has(STATS_FEATURE).then_some(FIRST_OPTIONAL_QUEUE);
        let next = FIRST_OPTIONAL_QUEUE + u16::from(stats.is_some());
        Self {
            stats,
            reporting: has(REPORTING_FEATURE).then_some(next),
        }
    }
}

impl Balloon {
    /// A device, new or in a clone.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(memory: Box<dyn FreeMemory>) -> Result<Self, BalloonError> {
        let flags = libc::EFD_NONBLOCK | libc::EFD_CLOEXEC;
        Ok(Self {
            memory,
            stats: StatsHandle::default(),
            again: EventFd::new(flags).map_err(BalloonError::Prepare)?,
            queues: OptionalQueues::default(),
            active: false,
            stats_wanted: false,
            failed: false,
        })
    }

    /// What the guest tells of its memory.
    #[must_use]
    pub fn stats(&self) -> StatsHandle {
        self.stats.clone()
    }

    /// Asks the driver for newer statistics: it gets its buffer back, and sends another.
    ///
    /// # Errors
    /// The driver has broken its queue.
    pub fn ask_for_stats(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.stats_wanted = true;
        let Some(queue) = self.queues.stats.filter(|_| self.active) else {
            return Ok(());
        };
        if let Some(chain) = rings.pop(queue)? {
            let head = chain.head_index();
            rings.add_used(queue, head, 0)?;
            // Before the driver can send: its next buffer comes with a doorbell.
            rings.enable_doorbell(queue)?;
            rings.signal_used(queue)?;
        }
        Ok(())
    }

    fn serve(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        if !self.active {
            return Ok(());
        }
        let result = match queue {
            INFLATE_QUEUE | DEFLATE_QUEUE => Self::return_all(queue, rings),
            _ if self.queues.stats == Some(queue) => self.read_stats(queue, rings),
            _ if self.queues.reporting == Some(queue) => self.take_reported(queue, rings),
            _ => Ok(()),
        };
        self.active = result.is_ok();
        result
    }

    /// The driver is asked for nothing, so what it puts there stays its own.
    fn return_all(queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut used = false;
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = rings.pop(queue)? else {
                break;
            };
            let head = chain.head_index();
            rings.add_used(queue, head, 0)?;
            used = true;
        }
        rings.enable_doorbell(queue)?;
        if used {
            rings.signal_used(queue)?;
        }
        Ok(())
    }

    /// Looks at the driver's buffer and leaves it in the queue.
    fn read_stats(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        rings.enable_doorbell(queue)?;
        let Some(chain) = rings.pop(queue)? else {
            return Ok(());
        };
        let memory = rings.memory();
        let broken = |source| DeviceError::Ring { queue, source };
        let reader = chain.reader(memory).map_err(broken)?;
        let mut records = Vec::new();
        reader
            .take(MOST_STATS_BYTES)
            .read_to_end(&mut records)
            .map_err(DeviceError::Backend)?;
        rings.push_back(queue);
        if self.stats_wanted {
            self.stats_wanted = false;
            self.stats.report(GuestMemoryStats::parse(&records));
        }
        Ok(())
    }

    /// Gives back what the driver reports, as much as a turn allows.
    fn take_reported(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        let mut budget = BYTES_PER_TURN;
        let left = rings.answer_all(queue, QUEUE_SIZE, |chain, _| {
            self.give_back(chain, &mut budget);
            Ok(if budget == 0 {
                ControlFlow::Break(0)
            } else {
                ControlFlow::Continue(0)
            })
        })?;
        if left {
            self.again.write(1).map_err(DeviceError::Backend)?;
        }
        Ok(())
    }

    /// What is over the budget stays the guest's, as does what is no whole page.
    fn give_back(&mut self, chain: Chain<'_>, budget: &mut u64) {
        for descriptor in chain.writable() {
            let start = descriptor.addr().0.next_multiple_of(PAGE);
            let end = descriptor.addr().0.saturating_add(descriptor.len().into()) / PAGE * PAGE;
            let length = end.saturating_sub(start).min(*budget);
            if length == 0 {
                continue;
            }
            *budget -= length;
            if let Err(error) = self.memory.give_back(GuestAddress(start), length)
                && !std::mem::replace(&mut self.failed, true)
            {
                tracing::warn!(%error, start, length, "Memory that the guest reports does not go back");
            }
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        STATS_FEATURE | REPORTING_FEATURE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    /// The driver is to have nothing in the balloon: all of the configuration is zero.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// The doorbells come for whatever is in the queues.
    fn activate(&mut self, features: u64, _rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.queues = OptionalQueues::of(features);
        self.active = true;
        Ok(())
    }

    fn queue_notified(&mut self, queue: u16, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        self.serve(queue, rings)
    }

    fn backend_fd(&self) -> Option<RawFd> {
        Some(self.again.as_raw_fd())
    }

    fn backend_ready(&mut self, rings: &mut Rings<'_>) -> Result<(), DeviceError> {
        // Non-blocking: it fails only when somebody else has looked already.
        if self.again.read().is_ok()
            && let Some(queue) = self.queues.reporting
        {
            self.serve(queue, rings)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.active = false;
        self.stats_wanted = false;
    }
}
