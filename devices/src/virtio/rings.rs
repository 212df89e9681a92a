//! A device's view of its virtqueues while it is being called.

use super::device::DeviceError;
use super::interrupt::VirtioInterrupt;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

/// What `virtio-queue` found wrong with a ring or a chain.
pub type RingError = virtio_queue::Error;

/// In the used ring: bytes in front of the elements, and of each element.
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// A chain of buffers taken from a queue.
pub type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap>;

/// The queues of one device, the memory they live in and the interrupt that reports progress.
///
/// Everything read through it was written by the guest and is hostile input.
#[derive(Debug)]
pub struct Rings<'a> {
    memory: &'a GuestMemoryMmap,
    queues: &'a mut [Queue],
    interrupt: &'a VirtioInterrupt,
}

impl<'a> Rings<'a> {
    /// Bundles the parts for one call of a device.
    pub fn new(
        memory: &'a GuestMemoryMmap,
        queues: &'a mut [Queue],
        interrupt: &'a VirtioInterrupt,
    ) -> Self {
        Self {
            memory,
            queues,
            interrupt,
        }
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &'a GuestMemoryMmap {
        self.memory
    }

    /// Takes the next available chain of `queue`, `None` when there is none.
    ///
    /// # Errors
    /// The available ring is broken, or there is no such queue or it is not ready.
    pub fn pop(&mut self, queue: u16) -> Result<Option<Chain<'a>>, DeviceError> {
        let memory = self.memory;
        let ring = self.ready(queue)?;
        // `iter` checks the distance of the available index; `pop_descriptor_chain` only logs.
        let next = ring.iter(memory).map(|mut chains| chains.next());
        next.map_err(|source| DeviceError::Ring { queue, source })
    }

    /// Puts the last chain that [`Self::pop`] took back, to be taken again.
    pub fn push_back(&mut self, queue: u16) {
        if let Some(ring) = self.queues.get_mut(usize::from(queue)) {
            let next = ring.next_avail().wrapping_sub(1);
            ring.set_next_avail(next);
        }
    }

    /// Returns a chain to the driver with `written` bytes in its writable part.
    ///
    /// # Errors
    /// The used ring is not in guest memory.
    pub fn add_used(&mut self, queue: u16, head: u16, written: u32) -> Result<(), DeviceError> {
        let memory = self.memory;
        let ring = self.ready(queue)?;
        ring.add_used(memory, head, written)
            .map_err(|source| DeviceError::Ring { queue, source })
    }

    /// Returns several chains to the driver at once: it sees all of them or none, as it must when one
    /// frame is spread over them. To be followed by [`Self::signal_used_anyhow`].
    ///
    /// # Errors
    /// The used ring is not in guest memory.
    pub fn add_used_together(
        &mut self,
        queue: u16,
        buffers: &[(u16, u32)],
    ) -> Result<(), DeviceError> {
        let Some(((last_head, last_written), before)) = buffers.split_last() else {
            return Ok(());
        };
        let memory = self.memory;
        let ring = self.ready(queue)?;
        let failed = |source| DeviceError::Ring { queue, source };
        for (head, written) in before {
            let position = ring.next_used();
            let offset = USED_HEADER + USED_ELEMENT * u64::from(position % ring.size());
            let address = GuestAddress(ring.used_ring()).checked_add(offset);
            let address = address.ok_or_else(|| failed(RingError::AddressOverflow))?;
            let element = u64::from(*written) << 32 | u64::from(*head);
            memory
                .write_obj(element.to_le(), address)
                .map_err(|source| failed(RingError::GuestMemory(source)))?;
            ring.set_next_used(position.wrapping_add(1));
        }
        // Writes the last one, and then the index that covers all.
        ring.add_used(memory, *last_head, *last_written)
            .map_err(failed)
    }

    /// Answers the chains of `queue`, at most `most`: `answer` returns how many bytes it has written, and
    /// breaks off when its turn is over. True when chains may be left that no doorbell reminds of.
    ///
    /// # Errors
    /// The rings are broken, or `answer` fails.
    pub fn answer_all(
        &mut self,
        queue: u16,
        most: u16,
        mut answer: impl FnMut(Chain<'a>, &Self) -> Result<ControlFlow<u32, u32>, DeviceError>,
    ) -> Result<bool, DeviceError> {
        let mut used = false;
        let mut left = true;
        for _ in 0..most {
            let Some(chain) = self.pop(queue)? else {
                if self.enable_doorbell(queue)? {
                    continue;
                }
                left = false;
                break;
            };
            let head = chain.head_index();
            let turn = answer(chain, self)?;
            let (ControlFlow::Continue(written) | ControlFlow::Break(written)) = turn;
            self.add_used(queue, head, written)?;
            used = true;
            if turn.is_break() {
                break;
            }
        }
        if used {
            self.signal_used(queue)?;
        }
        Ok(left)
    }

    /// Interrupts the driver, whether it wants to know or not.
    pub fn signal_used_anyhow(&self) {
        self.interrupt.signal_used();
    }

    /// Interrupts the driver for the used buffers of `queue`, when it wants to know.
    ///
    /// # Errors
    /// The used ring is not in guest memory.
    pub fn signal_used(&mut self, queue: u16) -> Result<(), DeviceError> {
        let memory = self.memory;
        let ring = self.ready(queue)?;
        let wanted = ring
            .needs_notification(memory)
            .map_err(|source| DeviceError::Ring { queue, source })?;
        if wanted {
            self.interrupt.signal_used();
        }
        Ok(())
    }

    /// Asks the driver to ring the doorbell at the next buffer it adds to `queue`; true when
    /// buffers came in the meantime and the caller must look again.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    pub fn enable_doorbell(&mut self, queue: u16) -> Result<bool, DeviceError> {
        let memory = self.memory;
        let ring = self.ready(queue)?;
        ring.enable_notification(memory)
            .map_err(|source| DeviceError::Ring { queue, source })
    }

    /// Asks the driver to ring the doorbell at the next buffer that it adds to `queue`, although
    /// buffers may be left in it; the driver's available index at that moment.
    ///
    /// # Errors
    /// The ring is not in guest memory.
    pub fn doorbell_at_next_buffer(&mut self, queue: u16) -> Result<u16, DeviceError> {
        let memory = self.memory;
        let ring = self.ready(queue)?;
        let failed = |source| DeviceError::Ring { queue, source };
        let taken = ring.next_avail();
        let mut available = ring.avail_idx(memory, Ordering::Acquire).map_err(failed)?.0;
        // A driver that adds buffers all the time rings for one of them anyway.
        for _ in 0..ring.size() {
            // `virtio-queue` asks for the doorbell at the position where the device is.
            ring.set_next_avail(available);
            let moved = ring.enable_notification(memory);
            ring.set_next_avail(taken);
            if !moved.map_err(failed)? {
                break;
            }
            available = ring.avail_idx(memory, Ordering::Acquire).map_err(failed)?.0;
        }
        Ok(available)
    }

    /// Notes that the driver's request changed the configuration space; it gets no interrupt.
    pub fn config_changed(&self) {
        self.interrupt.raise_config_generation();
    }

    /// Tells the driver that the configuration space changed, without its doing.
    pub fn announce_config(&self) {
        self.interrupt.raise_config_generation();
        self.interrupt.signal_config();
    }

    fn ready(&mut self, queue: u16) -> Result<&mut Queue, DeviceError> {
        let not_ready = DeviceError::Ring {
            queue,
            source: RingError::QueueNotReady,
        };
        let ring = self
            .queues
            .get_mut(usize::from(queue))
            .filter(|ring| ring.ready());
        ring.ok_or(not_ready)
    }
}
