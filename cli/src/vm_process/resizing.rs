//! A VM in use comes to another size, from the request to the answer.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::anyhow;
use proto::AGENT_PORT;
use vmm::MemorySize;

use super::session::{Session, as_reply};
use super::sizing::{Outcome, SizeReport, Sizing, Target};
use super::snapshotting::Snapshotting;
use crate::background::Background;
use crate::control::Reply;
use crate::control::server::ClientId;

/// The guest comes to another size, for a client that waits for it.
#[derive(Debug)]
pub struct Resizing {
    client: ClientId,
    asking: Background<anyhow::Result<Outcome>>,
}

impl Resizing {
    /// What to poll for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.asking.as_fd()
    }
}

impl Session {
    /// Begins to bring the VM to another size.
    ///
    /// # Errors
    /// The VM is in no state for it, or the size is not possible.
    pub fn begin_resize(
        &mut self,
        client: ClientId,
        cpus: Option<u8>,
        memory_bytes: Option<u64>,
        timeout: Duration,
    ) -> anyhow::Result<()> {
        if !self.bring_up.is_done() {
            return Err(anyhow!("it is still starting"));
        }
        if self.stop.is_some() {
            return Err(anyhow!("it is shutting down"));
        }
        if self.resizing.is_some() {
            return Err(anyhow!("it is being resized already"));
        }
        if self
            .snapshotting
            .as_ref()
            .is_some_and(Snapshotting::is_to_be_taken)
        {
            return Err(anyhow!("a snapshot of it is being made"));
        }
        if self.machine.is_paused() {
            return Err(anyhow!("it is paused; 'minivmm resume' lets it go on"));
        }
        if !self.has_agent {
            return Err(anyhow!(
                "its guest has no agent, which brings CPUs and memory into use"
            ));
        }
        let memory = memory_bytes.map(MemorySize::from_bytes).transpose()?;
        let sizing = Sizing::begin(&mut self.machine, Target { cpus, memory })?;
        let stream = self.machine.connect(AGENT_PORT)?;
        let asking = Background::start("size", move || sizing.finish(stream, timeout))?;
        self.resizing = Some(Resizing { client, asking });
        Ok(())
    }

    /// Answers once the size is reached, or cannot be.
    pub fn advance_resize(&mut self) {
        let Some(done) = self.resizing.as_ref().and_then(|r| r.asking.take()) else {
            return;
        };
        let Some(Resizing { client, .. }) = self.resizing.take() else {
            return;
        };
        let reply = match done {
            Ok(Outcome { report: size, .. }) => {
                self.note_size(&size);
                Reply::Resized { size }
            }
            Err(error) => as_reply(Err(error)),
        };
        self.control.reply(client, &reply);
    }

    /// Writes down what the VM has now.
    pub fn note_size(&mut self, size: &SizeReport) {
        self.record.cpus = size.cpus;
        self.record.memory_bytes = size.memory_bytes;
        self.write_record();
    }
}
