//! A snapshot of a VM in use, from the request to the answer.
//!
//! The guest's processes are held from just before the VM stands still until just after, so that in a
//! clone none of them runs before the clone has its identity. The hold ends with the connection to the
//! agent over which it was asked for, and that is closed whatever becomes of the snapshot.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use proto::AGENT_PORT;

use super::session::{Session, as_reply};
use super::snapshot::{self, Opened};
use crate::agent::Agent;
use crate::background::Background;
use crate::control::server::ClientId;
use crate::control::{Reply, Snapshotted};
use crate::poll;

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
    /// The guest's processes come to a stop.
    Holding(Box<Opened>, Background<anyhow::Result<Hold>>),
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
            Stage::Holding(_, asking) => asking.as_fd(),
            Stage::Publishing(publishing) => publishing.as_fd(),
        }
    }

    /// The VM still has to stand still.
    pub fn is_to_be_taken(&self) -> bool {
        matches!(self.stage, Stage::Holding(..))
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
        let opened = snapshot::open(&self.machine, &self.origin, store, name.parse()?)?;
        let stage = match hold {
            Some(timeout) => {
                let stream = self.machine.connect(AGENT_PORT)?;
                let asking = Background::start("hold", move || Hold::begin(stream, timeout))?;
                Stage::Holding(Box::new(opened), asking)
            }
            None => Stage::Publishing(self.take_snapshot(opened, None)?),
        };
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

    fn take_snapshot(
        &mut self,
        opened: Opened,
        hold: Option<Hold>,
    ) -> anyhow::Result<Background<anyhow::Result<Snapshotted>>> {
        snapshot::take(&mut self.machine, &self.origin, opened, hold)
    }

    /// Takes the next step of a snapshot when it is due.
    pub fn advance_snapshot(&mut self) {
        let Some(Snapshotting { client, stage }) = self.snapshotting.take() else {
            return;
        };
        let stage = match stage {
            // It would be a template of a guest that ends.
            Stage::Holding(..) if self.stop.is_some() => {
                Err(as_reply(Err(anyhow!("it is shutting down"))))
            }
            Stage::Holding(opened, asking) => match asking.take() {
                None => Ok(Stage::Holding(opened, asking)),
                Some(hold) => hold
                    .and_then(|hold| self.take_snapshot(*opened, Some(hold)))
                    .map(Stage::Publishing)
                    .map_err(|error| as_reply(Err(error))),
            },
            Stage::Publishing(publishing) => match publishing.take() {
                None => Ok(Stage::Publishing(publishing)),
                Some(Ok(template)) => Err(Reply::Snapshotted { template }),
                Some(Err(error)) => Err(as_reply(Err(error))),
            },
        };
        match stage {
            Ok(stage) => self.snapshotting = Some(Snapshotting { client, stage }),
            Err(reply) => self.control.reply(client, &reply),
        }
    }

    /// Tells who waits for a snapshot of a VM that has ended whether there is a template.
    pub fn finish_snapshot(&mut self) {
        let Some(Snapshotting { client, stage }) = &self.snapshotting else {
            return;
        };
        let published = match stage {
            Stage::Holding(..) => false,
            Stage::Publishing(publishing) => {
                let deadline = Instant::now() + PUBLISHING;
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
