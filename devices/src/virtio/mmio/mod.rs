//! The virtio-mmio transport, version 2 (virtio 1.2, section 4.2.2).

mod error;
mod events;
mod registers;
#[cfg(test)]
mod tests;

use super::device::{DeviceError, VirtioDevice};
use super::interrupt::VirtioInterrupt;
use super::rings::Rings;
use super::state::TransportState;
use crate::irq::IrqLine;
use std::fmt;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub use error::TransportError;

/// Length of a transport's register window, in bytes.
pub const WINDOW_LENGTH: u64 = 0x1000;
/// Offset of the doorbell: the driver writes the queue's index there.
pub const QUEUE_NOTIFY_OFFSET: u64 = 0x50;

/// Guest memory as a transport sees it: it may gain regions while the guest runs.
pub type SharedMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Registers, queues and doorbells of one virtio device.
pub struct MmioTransport<D> {
    device: D,
    memory: SharedMemory,
    interrupt: VirtioInterrupt,
    queues: Vec<Queue>,
    doorbells: Vec<EventFd>,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    status: u32,
    /// The first failure is in the log; a guest must not fill it.
    was_broken: bool,
}

impl<D> fmt::Debug for MmioTransport<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// A freshly reset device.
    ///
    /// # Errors
    /// No descriptors left, or the device's queue sizes are not powers of two up to 32768.
    pub fn new(
        device: D,
        memory: SharedMemory,
        line: Box<dyn IrqLine>,
    ) -> Result<Self, TransportError> {
        let kind = device.kind() as u32;
        let sizes = device.queue_sizes();
        let mut queues = Vec::with_capacity(sizes.len());
        let mut doorbells = Vec::with_capacity(sizes.len());
        for (queue, size) in sizes.iter().enumerate() {
            let ring = Queue::new(*size).map_err(|source| TransportError::QueueSize {
                kind,
                queue,
                source,
            })?;
            queues.push(ring);
            doorbells.push(EventFd::new(libc::EFD_NONBLOCK).map_err(TransportError::EventFd)?);
        }
        Ok(Self {
            device,
            memory,
            interrupt: VirtioInterrupt::new(line),
            queues,
            doorbells,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            status: 0,
            was_broken: false,
        })
    }

    /// The device as it was saved.
    ///
    /// # Errors
    /// The state does not fit the device or the guest's memory.
    pub fn restore(
        device: D,
        memory: SharedMemory,
        line: Box<dyn IrqLine>,
        state: &TransportState,
    ) -> Result<Self, TransportError> {
        let mut transport = Self::new(device, memory, line)?;
        transport.check_state(state)?;
        transport.device_features_select = state.device_features_select;
        transport.driver_features_select = state.driver_features_select;
        transport.driver_features = state.driver_features;
        transport.queue_select = state.queue_select;
        transport.status = state.status;
        transport.interrupt.set_status(state.interrupt_status);
        transport
            .interrupt
            .set_config_generation(state.config_generation);
        transport.restore_queues(state)?;
        if transport.is_active() {
            // The guest may have broken its rings before the save: its device is lost, not the clone.
            let result = transport.call(|device, rings, features| device.activate(features, rings));
            transport.contain(result);
        }
        Ok(transport)
    }

    /// Everything the guest can observe of the transport.
    #[must_use]
    pub fn save(&self) -> TransportState {
        TransportState {
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            status: self.status,
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.config_generation(),
            queues: self
                .queues
                .iter()
                .map(|queue| queue.state().into())
                .collect(),
        }
    }

    /// The eventfd of each queue's doorbell, to be connected to [`QUEUE_NOTIFY_OFFSET`].
    #[must_use]
    pub fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    /// The device behind the transport.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Calls the device with its queues, for what the bus and the event loop do not cover.
    ///
    /// Does nothing while the driver has not said DRIVER_OK.
    pub fn with_rings(
        &mut self,
        f: impl FnOnce(&mut D, &mut Rings<'_>) -> Result<(), DeviceError>,
    ) {
        if self.is_active() {
            let result = self.call(|device, rings, _| f(device, rings));
            self.contain(result);
        }
    }

    /// Calls the device for its back end, in every state of the driver: before DRIVER_OK the device
    /// leaves the queues alone.
    pub fn with_backend(
        &mut self,
        f: impl FnOnce(&mut D, &mut Rings<'_>) -> Result<(), DeviceError>,
    ) {
        let result = self.call(|device, rings, _| f(device, rings));
        if self.is_active() {
            self.contain(result);
        }
    }

    /// Changes what the driver reads in the device's configuration space, and tells it.
    ///
    /// Works in every state of the device: a driver that is not there yet reads it later.
    ///
    /// # Errors
    /// Those of `change`, which must have changed nothing then.
    pub fn change_config<E>(
        &mut self,
        change: impl FnOnce(&mut D) -> Result<(), E>,
    ) -> Result<(), E> {
        change(&mut self.device)?;
        self.interrupt.raise_config_generation();
        if self.is_active() {
            self.interrupt.signal_config();
        }
        Ok(())
    }

    /// Looks at every queue and sends a pending interrupt again.
    ///
    /// Called when the machine goes on after a pause or a restore: a doorbell or an edge that was
    /// on its way at the pause would be lost, and with RING_EVENT_IDX never repeated.
    pub fn kick(&mut self) {
        for queue in 0..self.queues.len() {
            self.notified(queue);
        }
        self.interrupt.resend();
    }

    /// The driver finished its set-up, and the device works.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && self.status & VIRTIO_CONFIG_S_NEEDS_RESET == 0
    }

    fn kind(&self) -> u32 {
        self.device.kind() as u32
    }

    fn offered_features(&self) -> u64 {
        self.device.features() | (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX)
    }

    fn check_state(&self, state: &TransportState) -> Result<(), TransportError> {
        let kind = self.kind();
        let (found, expected) = (state.queues.len(), self.queues.len());
        if found != expected {
            return Err(TransportError::QueueCount {
                kind,
                found,
                expected,
            });
        }
        if !registers::is_possible_status(state.status) {
            let found = state.status;
            return Err(TransportError::Status { kind, found });
        }
        // Before FEATURES_OK the driver may have written anything.
        let (found, offered) = (state.driver_features, self.offered_features());
        let accepted = state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if accepted && !registers::features_fit(found, offered) {
            return Err(TransportError::Features {
                kind,
                found,
                offered,
            });
        }
        Ok(())
    }

    fn restore_queues(&mut self, state: &TransportState) -> Result<(), TransportError> {
        let kind = self.kind();
        let active = self.is_active();
        let memory = self.memory.memory();
        for (queue, (ring, saved)) in self.queues.iter_mut().zip(&state.queues).enumerate() {
            let invalid = TransportError::QueueInvalid { kind, queue };
            let restored = Queue::try_from(virtio_queue::QueueState::from(*saved));
            // Without DRIVER_OK nobody has looked yet where the driver has put its rings.
            let in_memory = |r: &Queue| !active || !r.ready() || r.is_valid(&*memory);
            let fits = |r: &Queue| r.max_size() == ring.max_size() && in_memory(r);
            *ring = restored.ok().filter(fits).ok_or(invalid)?;
        }
        Ok(())
    }

    fn call<R>(&mut self, f: impl FnOnce(&mut D, &mut Rings<'_>, u64) -> R) -> R {
        let memory = self.memory.memory();
        let mut rings = Rings::new(&memory, &mut self.queues, &self.interrupt);
        f(&mut self.device, &mut rings, self.driver_features)
    }

    fn notified(&mut self, queue: usize) {
        let Ok(index) = u16::try_from(queue) else {
            return;
        };
        if self.is_active() && self.queues.get(queue).is_some_and(Queue::ready) {
            let result = self.call(|device, rings, _| device.queue_notified(index, rings));
            self.contain(result);
        }
    }

    /// A guest that breaks its queues loses the device, nothing else.
    fn contain(&mut self, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            let kind = self.kind();
            if std::mem::replace(&mut self.was_broken, true) {
                tracing::debug!(kind, %error, "Virtio device needs a reset again");
            } else {
                tracing::error!(kind, %error, "Virtio device needs a reset");
            }
            self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
            self.interrupt.signal_config();
        }
    }
}
