//! A virtio device that a machine may have or not: its place, its transport and its section of the
//! state file.

use crate::event_loop::Subscriber;
use crate::kvm::KvmVm;
use crate::layout::VirtioSlot;
use crate::platform::{PlatformError, connect_doorbells, line, lock};
use devices::bus::{Bus, Overlap};
use devices::virtio::device::VirtioDevice;
use devices::virtio::mmio::{MmioTransport, SharedMemory, WINDOW_LENGTH};
use devices::virtio::state::{TRANSPORT_STATE_VERSION, TransportState};
use snapshot::{StateError, StateFile, StateWriter, WriteError};
use std::sync::{Arc, Mutex, MutexGuard};

/// A device at its place.
#[derive(Debug)]
pub(crate) struct VirtioPart<D> {
    slot: VirtioSlot,
    transport: Arc<Mutex<MmioTransport<D>>>,
}

impl<D: VirtioDevice + 'static> VirtioPart<D> {
    /// The device as after power-on, or as it was saved.
    pub(crate) fn new(
        vm: &KvmVm,
        memory: &SharedMemory,
        slot: VirtioSlot,
        device: D,
        state: Option<&TransportState>,
    ) -> Result<Self, PlatformError> {
        let line = line(vm, slot.gsi())?;
        let transport = match state {
            None => MmioTransport::new(device, memory.clone(), line)?,
            Some(state) => MmioTransport::restore(device, memory.clone(), line, state)?,
        };
        connect_doorbells(vm, slot, &transport)?;
        Ok(Self {
            slot,
            transport: Arc::new(Mutex::new(transport)),
        })
    }

    /// The device, for one short call.
    pub(crate) fn lock(&self) -> MutexGuard<'_, MmioTransport<D>> {
        lock(&self.transport)
    }

    /// The device, for who has to reach it without the machine.
    pub(crate) fn shared(&self) -> Arc<Mutex<MmioTransport<D>>> {
        self.transport.clone()
    }

    /// What the event loop has to serve.
    pub(crate) fn subscriber(&self) -> Subscriber {
        self.transport.clone()
    }

    /// Puts the registers on the bus.
    pub(crate) fn connect(&self, mmio: &mut Bus) -> Result<(), Overlap> {
        mmio.insert(self.slot.window(), WINDOW_LENGTH, self.transport.clone())
    }

    /// Adds the transport to a state file.
    pub(crate) fn save(&self, writer: &mut StateWriter, section: &str) -> Result<(), WriteError> {
        writer.section(section, TRANSPORT_STATE_VERSION, &self.lock().save())
    }
}

/// The transport in a section of the state file; `None` in a machine without the device.
pub(crate) fn read_transport(
    file: &StateFile,
    section: &str,
) -> Result<Option<TransportState>, StateError> {
    let versions = TRANSPORT_STATE_VERSION..=TRANSPORT_STATE_VERSION;
    file.has(section)
        .then(|| file.section(section, versions))
        .transpose()
}
