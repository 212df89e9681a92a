//! A snapshot of a VM in use, from the request to the answer.
//!
//! The guest's processes are held from just before the VM stands still until just after, so that in a
//! clone none of them runs before the clone has its identity. The hold ends with the connection to the
//! agent over which it was asked for, and that is closed whatever becomes of the snapshot.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ::snapshot::{TemplateName, Wanted};
use anyhow::{Context, anyhow};
use proto::AGENT_PORT;

use super::session::{Session, as_reply};
use super::snapshot::{self, Copying, Opened};
use crate::agent::Agent;
use crate::background::{Background, Revocable};
use crate::control::server::ClientId;
use crate::control::{Reply, Snapshotted};
use crate::poll;
use crate::state::record::State;

/// How long a VM that has ended may take to publish the template that is being made of it.
const PUBLISHING: Duration = Duration::from_secs(20);

/// A template of this VM is made, for a client that waits for it.
#[derive(Debug)]
pub struct Snapshotting {
    client: ClientId,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The template gets what the VM was made of.
    Opening(Revocable<anyhow::Result<Opened>>, Option<Duration>),
    /// The guest's processes come to a stop.
    Holding(Box<Opened>, Background<anyhow::Result<Hold>>),
    /// The machine stands still.
    Copying(Box<Copying>, Option<Hold>),
    /// The guest goes on; the template is written.
    Publishing(Background<anyhow::Result<Snapshotted>>),
}

/// The guest's processes do not run for as long as this is there.
#[derive(Debug)]
pub struct Hold {
    /// None when the guest does not want to be held.
    agent: Option<Agent>,
}

impl Hold {
    fn begin(stream: UnixStream, timeout: Duration) -> anyhow::Result<Self> {
        let mut agent = Agent::over(stream);
        let held = agent.hold(timeout).context(
            "Cannot hold the guest's processes; with --no-hold they run on in a clone until it has \
             its identity",
        )?;
        Ok(Self {
            agent: held.then_some(agent),
        })
    }

    /// Whether the guest lets itself be held.
    pub fn is_held(&self) -> bool {
        self.agent.is_some()
    }

    /// Returns how long it was, if there was one and the guest tells.
    pub fn release(self) -> Option<Duration> {
        match self.agent?.release() {
            Ok(held) => Some(held),
            // They go on when the connection ends, now.
            Err(error) => {
                tracing::warn!(%error, "Guest does not say that its processes go on");
                None
            }
        }
    }
}

impl Snapshotting {
    /// What to poll for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match &self.stage {
            Stage::Opening(opening, _) => opening.as_fd(),
            Stage::Holding(_, holding) => holding.as_fd(),
            Stage::Copying(copying, _) => copying.as_fd(),
            Stage::Publishing(publishing) => publishing.as_fd(),
        }
    }

    /// The VM still has to stand still, or does.
    pub fn is_to_be_taken(&self) -> bool {
        !matches!(self.stage, Stage::Publishing(_))
    }
}

impl Session {
    /// Begins a snapshot. Processes are held unless `hold` is `None`, and may take so long to stop.
    ///
    /// # Errors
    /// The VM is in no state for one, or the template cannot be begun.
    pub fn begin_snapshot(
        &mut self,
        client: ClientId,
        name: &str,
        store: &Path,
        hold: Option<Duration>,
    ) -> anyhow::Result<()> {
        if !self.bring_up.is_done() {
            return Err(anyhow!("it is still starting"));
        }
        if self.stop.is_some() {
            return Err(anyhow!("it is shutting down"));
        }
        if self.snapshotting.is_some() {
            return Err(anyhow!("a snapshot of it is being made already"));
        }
        if self.resizing.is_some() {
            return Err(anyhow!("it is being resized"));
        }
        if let Some(damage) = &self.record.template_damage {
            return Err(anyhow!(
                "its template is damaged, and a template of it would be: {damage}"
            ));
        }
        if hold.is_some() {
            self.can_be_held()?;
        }
        let name: TemplateName = name.parse()?;
        let (store, origin) = (store.to_owned(), self.origin.clone());
        let memory_file_bytes = self.machine.memory_file_bytes();
        let disks = self.machine.disks();
        let open = move |wanted: Wanted<'_>| {
            snapshot::open(memory_file_bytes, &disks, &origin, &store, &name, wanted)
        };
        let stage = Stage::Opening(Revocable::start("open", open)?, hold);
        self.snapshotting = Some(Snapshotting { client, stage });
        Ok(())
    }

    fn can_be_held(&self) -> anyhow::Result<()> {
        let problem = if !self.has_agent {
            "it has no agent that could hold its processes"
        } else if self.machine.is_paused() {
            "it is paused, so its processes cannot be held; 'minivmm resume' lets it go on"
        } else {
            return Ok(());
        };
        Err(anyhow!(
            "{problem}; with --no-hold they run on in a clone until it has its identity"
        ))
    }

    /// Takes the next step of a snapshot when it is due.
    pub fn advance_snapshot(&mut self) {
        let Some(Snapshotting { client, stage }) = self.snapshotting.take() else {
            return;
        };
        match self.next_stage(stage) {
            Ok(Next::Stage(stage)) => self.snapshotting = Some(Snapshotting { client, stage }),
            Ok(Next::Done(template)) => {
                self.control.reply(client, &Reply::Snapshotted { template });
            }
            Err(error) => self.control.reply(client, &as_reply(Err(error))),
        }
    }

    fn next_stage(&mut self, stage: Stage) -> anyhow::Result<Next> {
        match stage {
            // It would be a template of a guest that ends.
            Stage::Opening(..) | Stage::Holding(..) if self.stop.is_some() => {
                Err(anyhow!("it is shutting down"))
            }
            Stage::Opening(opening, hold) => match opening.take() {
                None => Ok(Next::Stage(Stage::Opening(opening, hold))),
                Some(opened) => self.begin_hold(opened?, hold).map(Next::Stage),
            },
            Stage::Holding(opened, holding) => match holding.take() {
                None => Ok(Next::Stage(Stage::Holding(opened, holding))),
                Some(hold) => self.begin_copy(*opened, Some(hold?)).map(Next::Stage),
            },
            Stage::Copying(copying, hold) if !copying.is_over() => {
                Ok(Next::Stage(Stage::Copying(copying, hold)))
            }
            Stage::Copying(copying, hold) => self.end_copy(*copying, hold).map(Next::Stage),
            Stage::Publishing(publishing) => match publishing.take() {
                None => Ok(Next::Stage(Stage::Publishing(publishing))),
                Some(template) => template.map(Next::Done),
            },
        }
    }

    fn begin_hold(&mut self, opened: Opened, hold: Option<Duration>) -> anyhow::Result<Stage> {
        let Some(timeout) = hold else {
            return self.begin_copy(opened, None);
        };
        let stream = self.machine.connect(AGENT_PORT)?;
        let holding = Background::start("hold", move || Hold::begin(stream, timeout))?;
        Ok(Stage::Holding(Box::new(opened), holding))
    }

    fn begin_copy(&mut self, opened: Opened, hold: Option<Hold>) -> anyhow::Result<Stage> {
        match Copying::begin(&mut self.machine, opened) {
            Ok(copying) => Ok(Stage::Copying(Box::new(copying), hold)),
            Err(error) => {
                self.go_on();
                Err(error)
            }
        }
    }

    fn end_copy(&mut self, copying: Copying, hold: Option<Hold>) -> anyhow::Result<Stage> {
        let origin = self.origin.clone();
        let publishing = copying.finish().and_then(|copied| {
            let publish = move || snapshot::publish(copied, origin, hold);
            Background::start("snapshot", publish).context("Cannot start a thread")
        });
        // Last, so that the release is the first that the agent finds.
        self.go_on();
        publishing.map(Stage::Publishing)
    }

    /// The machine need not stand still any more. What was asked for meanwhile is done now.
    fn go_on(&mut self) {
        if self.record.state == State::Running {
            self.machine.resume();
        }
    }

    /// The machine is paused though nobody has asked for that.
    pub fn stands_still_for_a_snapshot(&self) -> bool {
        let snapshotting = self.snapshotting.as_ref();
        snapshotting.is_some_and(|snapshotting| matches!(snapshotting.stage, Stage::Copying(..)))
    }

    /// Tells who waits for a snapshot of a VM that has ended whether there is a template.
    pub fn finish_snapshot(&mut self) {
        let Some(Snapshotting { client, stage }) = &self.snapshotting else {
            return;
        };
        let deadline = Instant::now() + PUBLISHING;
        let published = match stage {
            Stage::Opening(opening, _) => {
                let _ended = opening.give_up(deadline);
                false
            }
            Stage::Holding(..) => false,
            Stage::Copying(copying, _) => {
                copying.give_up(deadline);
                false
            }
            Stage::Publishing(publishing) => {
                poll::readable(publishing, Some(deadline)).unwrap_or(false)
            }
        };
        if published {
            self.advance_snapshot();
        } else {
            let late = Err(anyhow!("it has ended before the template was published"));
            self.control.reply(*client, &as_reply(late));
        }
    }
}

/// What follows a stage.
enum Next {
    Stage(Stage),
    Done(Snapshotted),
}
