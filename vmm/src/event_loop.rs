//! The thread that serves doorbells and the host side of devices.

use crate::parking::{NotParked, Order, Parking};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

/// No device blocks, so the loop comes round quickly.
const PARK_DEADLINE: Duration = Duration::from_secs(20);

/// A device as the loop shares it with the vCPUs.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// The loop cannot be set up or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// No epoll descriptor.
    #[error("Cannot set up the event loop")]
    Epoll(#[source] event_manager::Error),
    /// No eventfd.
    #[error("Cannot create the event loop's wake-up")]
    EventFd(#[source] io::Error),
    /// No thread.
    #[error("Cannot start the event loop's thread")]
    Spawn(#[source] io::Error),
    /// A device blocks the loop.
    #[error("Event loop does not stop")]
    Park(#[source] NotParked),
}

/// The event loop and its thread. Parked at first.
#[derive(Debug)]
pub struct EventLoop {
    parking: Arc<Parking>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the thread with its devices, parked.
    ///
    /// # Errors
    /// The host has no descriptor or thread left.
    pub fn spawn(devices: Vec<Subscriber>) -> Result<Self, EventLoopError> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(EventLoopError::EventFd)?;
        let mut manager = EventManager::<Subscriber>::new().map_err(EventLoopError::Epoll)?;
        let theirs = wake.try_clone().map_err(EventLoopError::EventFd)?;
        manager.add_subscriber(Arc::new(Mutex::new(Wake(theirs))));
        for device in devices {
            manager.add_subscriber(device);
        }
        let parking = Arc::new(Parking::new());
        let thread_parking = parking.clone();
        let thread = devices::thread("events")
            .spawn(move || thread_main(manager, &thread_parking))
            .map_err(EventLoopError::Spawn)?;
        Ok(Self {
            parking,
            wake,
            thread: Some(thread),
        })
    }

    /// Lets the loop serve events.
    pub fn run(&self) {
        self.parking.order(Order::Run);
    }

    /// Stops the loop; when this returns, no device touches guest memory from it.
    ///
    /// # Errors
    /// A device blocks.
    pub fn park(&self) -> Result<(), EventLoopError> {
        self.order(Order::Park);
        self.parking
            .wait_parked(PARK_DEADLINE)
            .map_err(EventLoopError::Park)
    }

    fn order(&self, order: Order) {
        self.parking.order(order);
        if let Err(error) = self.wake.write(1) {
            tracing::error!(%error, "Event loop cannot be woken");
        }
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("Event loop panicked");
        }
    }
}

fn thread_main(mut manager: EventManager<Subscriber>, parking: &Parking) {
    while parking.next() == Order::Run {
        while !parking.has_new_order() {
            if let Err(error) = manager.run() {
                tracing::error!(?error, "Event loop failed");
            }
        }
    }
}

/// Wakes the loop so that it looks at its orders.
struct Wake(EventFd);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Non-blocking: an empty eventfd only means that the wake-up was seen before.
        let _seen = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.0, EventSet::IN)) {
            tracing::error!(?error, "Event loop cannot be woken");
        }
    }
}
