//! A transport's place in the event loop: doorbells, and the host side of the device.

use super::MmioTransport;
use crate::virtio::device::VirtioDevice;
use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

/// Event data of the back end's descriptor; smaller values are queue indices.
const BACKEND_EVENT: u32 = u32::MAX;

impl<D: VirtioDevice> MutEventSubscriber for MmioTransport<D> {
    fn init(&mut self, ops: &mut EventOps) {
        let mut add = |events: Events| {
            if let Err(error) = ops.add(events) {
                tracing::error!(?error, "Virtio device gets no events");
            }
        };
        for (queue, doorbell) in (0..).zip(&self.doorbells) {
            add(Events::with_data(doorbell, queue, EventSet::IN));
        }
        if let Some(fd) = self.device.backend_fd() {
            add(Events::with_data_raw(fd, BACKEND_EVENT, EventSet::IN));
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.data() == BACKEND_EVENT {
            self.with_backend(|device, rings| device.backend_ready(rings));
            return;
        }
        let queue = events.data() as usize;
        if let Some(doorbell) = self.doorbells.get(queue) {
            // Non-blocking: an empty eventfd only means that somebody else looked already.
            if doorbell.read().is_ok() {
                self.notified(queue);
            }
        }
    }
}
