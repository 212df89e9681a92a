//! The guest is asked what it does with its memory, for clients that wait for that.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use vmm::GuestMemoryStats;

use super::session::Session;
use crate::background::Background;
use crate::control::Reply;
use crate::control::server::ClientId;

/// How long a guest may take for its answer. One that is paused does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A question that is not answered yet.
#[derive(Debug)]
pub struct MemoryAsked {
    client: ClientId,
    asking: Background<Option<GuestMemoryStats>>,
}

impl MemoryAsked {
    /// What to poll for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.asking.as_fd()
    }
}

impl Session {
    /// Asks the guest. Without a device for it, or when it stands still, there is nothing to be known.
    pub fn ask_for_memory(&mut self, client: ClientId) {
        let request = (!self.machine.is_paused()).then(|| self.machine.stats_request());
        let asking = request.flatten().and_then(|request| {
            let asking = Background::start("stats", move || request.ask(PATIENCE));
            asking.ok()
        });
        match asking {
            Some(asking) => self.memory_asked.push(MemoryAsked { client, asking }),
            None => {
                let unknown = Reply::GuestMemory { memory: None };
                self.control.reply(client, &unknown);
            }
        }
    }

    /// Passes on the answers that are there.
    pub fn answer_memory(&mut self) {
        let control = &mut self.control;
        self.memory_asked.retain(|asked| {
            let Some(memory) = asked.asking.take() else {
                return true;
            };
            control.reply(asked.client, &Reply::GuestMemory { memory });
            false
        });
    }
}
