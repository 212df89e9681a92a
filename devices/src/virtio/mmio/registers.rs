//! The register file of a transport: what the driver reads and writes, and the status machine.

use super::{MmioTransport, QUEUE_NOTIFY_OFFSET};
use crate::bus::BusDevice;
use crate::virtio::device::{DeviceError, VirtioDevice};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"mvmm");
const CONFIG_SPACE: u64 = 0x100;

impl<D: VirtioDevice> BusDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG_SPACE {
            self.device.read_config(offset - CONFIG_SPACE, data);
        } else if data.len() == 4 {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG_SPACE {
            tracing::debug!(offset, "Write to a read-only virtio configuration space");
        } else if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

impl<D: VirtioDevice> MmioTransport<D> {
    fn read_register(&self, offset: u64) -> u32 {
        let selected = self.queues.get(self.queue_select as usize);
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.kind(),
            0x0c => VENDOR,
            0x10 => word(self.offered_features(), self.device_features_select),
            0x34 => selected.map_or(0, |queue| u32::from(queue.max_size())),
            0x44 => selected.map_or(0, |queue| u32::from(queue.ready())),
            0x60 => self.interrupt.status(),
            0x70 => self.status,
            // No shared memory regions: the specification wants a length of all ones.
            0xb0 | 0xb4 | 0xb8 | 0xbc => u32::MAX,
            0xfc => self.interrupt.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_select = value,
            0x20 => self.accept_features(value),
            0x24 => self.driver_features_select = value,
            0x30 => self.queue_select = value,
            0x38 | 0x44 | 0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => {
                self.set_up_queue(offset, value);
            }
            // Normally an ioeventfd takes this write before it gets here.
            QUEUE_NOTIFY_OFFSET => self.notified(value as usize),
            0x64 => self.interrupt.acknowledge(value),
            0x70 => self.write_status(value),
            _ => tracing::debug!(offset, value, "Write to an unknown virtio register"),
        }
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let (shift, mask) = match self.driver_features_select {
            0 => (0, 0xffff_ffff_0000_0000),
            1 => (32, 0x0000_0000_ffff_ffff),
            _ => return,
        };
        self.driver_features = (self.driver_features & mask) | (u64::from(value) << shift);
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let configurable = self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0
            && self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED) == 0;
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else {
            return;
        };
        if !configurable {
            return;
        }
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            _ => queue.set_used_ring_address(None, Some(value)),
        }
    }

    /// The status machine of virtio 1.2, section 3.1.1: bits are only ever added, in order.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let added = value & !self.status;
        if value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        let next = match added {
            VIRTIO_CONFIG_S_ACKNOWLEDGE => self.status == 0,
            VIRTIO_CONFIG_S_DRIVER => self.status == VIRTIO_CONFIG_S_ACKNOWLEDGE,
            VIRTIO_CONFIG_S_FEATURES_OK => {
                self.status == VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
                    && features_fit(self.driver_features, self.offered_features())
            }
            VIRTIO_CONFIG_S_DRIVER_OK => self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0,
            _ => false,
        };
        if !next {
            tracing::debug!(
                from = self.status,
                to = value,
                "Virtio status change refused"
            );
            return;
        }
        self.status |= added;
        if added == VIRTIO_CONFIG_S_DRIVER_OK {
            self.start();
        }
    }

    fn start(&mut self) {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let memory = self.memory.memory();
        let mut usable = true;
        for queue in self.queues.iter_mut().filter(|queue| queue.ready()) {
            queue.set_event_idx(event_idx);
            usable &= queue.is_valid(&*memory);
        }
        let result = if usable {
            self.call(|device, rings, features| device.activate(features, rings))
        } else {
            let source = virtio_queue::Error::FindMemoryRegion;
            Err(DeviceError::Ring { queue: 0, source })
        };
        self.contain(result);
    }

    fn reset(&mut self) {
        self.device.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        self.interrupt.set_status(0);
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
    }
}

/// Whether a driver can have accepted these features.
pub(super) fn features_fit(accepted: u64, offered: u64) -> bool {
    accepted & !offered == 0 && accepted & (1 << VIRTIO_F_VERSION_1) != 0
}

/// Whether drivers and devices that keep to the status machine can get to this status.
pub(super) fn is_possible_status(status: u32) -> bool {
    const ACKNOWLEDGED: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
    const FOUND: u32 = ACKNOWLEDGED | VIRTIO_CONFIG_S_DRIVER;
    const ACCEPTED: u32 = FOUND | VIRTIO_CONFIG_S_FEATURES_OK;
    const STARTED: u32 = ACCEPTED | VIRTIO_CONFIG_S_DRIVER_OK;
    const BROKEN: u32 = STARTED | VIRTIO_CONFIG_S_NEEDS_RESET;
    matches!(
        status & !VIRTIO_CONFIG_S_FAILED,
        0 | ACKNOWLEDGED | FOUND | ACCEPTED | STARTED | BROKEN
    )
}

/// Word `select` of a 64-bit register that is read in halves.
fn word(value: u64, select: u32) -> u32 {
    let shifted = value.checked_shr(select.saturating_mul(32)).unwrap_or(0);
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is asked for"
    )]
    let low = shifted as u32;
    low
}
