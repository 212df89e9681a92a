//! From running vCPUs to an agent that has done what was asked of it first.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use proto::{AGENT_PORT, READY_LINE, READY_PORT};
use vmm::Machine;

use super::sizing::{Outcome, Sizing};
use crate::agent::{Adopted, Agent, Identity};
use crate::background::Background;
use crate::listen;
use crate::state::dir::VmDir;
use crate::warm::{Job, warm_up};

/// What the agent is asked first.
#[derive(Clone, Debug)]
pub enum Ask {
    /// To make the guest a machine of its own, and to take what was added to it.
    Adopt(Identity, Option<Sizing>),
    /// To get ready to become a template, after it has been warmed up.
    Prepare(Option<Job>),
}

/// What the agent has done.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The guest has its identity, since when, and its size or not.
    Adopted(Adopted, Instant, Option<Outcome>),
    /// The guest can be frozen.
    Prepared,
}

/// How far it has got.
#[derive(Debug)]
pub enum BringUp {
    /// The guest boots; its agent is going to call.
    Booting(Doorbell),
    /// The agent works on the question.
    Asking(Background<anyhow::Result<Answer>>),
    /// The agent has answered, or nobody waits for it.
    Done,
}

/// The socket at which the agent reports that it is up.
#[derive(Debug)]
pub struct Doorbell {
    listener: UnixListener,
    path: PathBuf,
    caller: Option<UnixStream>,
    heard: Vec<u8>,
}

impl BringUp {
    /// Waits for the agent of a guest that is going to boot.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn await_boot(dir: &VmDir) -> anyhow::Result<Self> {
        Doorbell::open(dir.vsock_listener(READY_PORT)).map(Self::Booting)
    }

    /// Asks the agent of a guest that runs, which goes on after a failed hook if it is to be kept.
    ///
    /// # Errors
    /// No descriptors or threads left.
    pub fn ask(machine: &Machine, ask: Ask, timeout: Duration, keep: bool) -> anyhow::Result<Self> {
        let stream = machine
            .connect(AGENT_PORT)
            .context("Cannot connect to the guest's agent")?;
        let sizing = match &ask {
            Ask::Adopt(_, Some(sizing)) => Some((sizing.clone(), machine.connect(AGENT_PORT)?)),
            Ask::Adopt(_, None) | Ask::Prepare(_) => None,
        };
        let work = move || match ask {
            Ask::Adopt(identity, _) => adopt(stream, &identity, sizing, timeout, keep),
            Ask::Prepare(job) => {
                job.as_ref().map_or(Ok(()), warm_up)?;
                Agent::over(stream).prepare(timeout)?;
                Ok(Answer::Prepared)
            }
        };
        let asking = Background::start("agent", work).context("Cannot start a thread")?;
        Ok(Self::Asking(asking))
    }

    /// What to poll for reading.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Booting(bell) => Some(match &bell.caller {
                Some(caller) => caller.as_fd(),
                None => bell.listener.as_fd(),
            }),
            Self::Asking(asking) => Some(asking.as_fd()),
            Self::Done => None,
        }
    }

    /// There is nothing to wait for any more.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }
}

/// The guest takes its CPUs and its memory while it takes its identity: neither waits for the other.
fn adopt(
    stream: UnixStream,
    identity: &Identity,
    sizing: Option<(Sizing, UnixStream)>,
    timeout: Duration,
    keep: bool,
) -> anyhow::Result<Answer> {
    std::thread::scope(|scope| {
        let size = sizing.map(|(sizing, stream)| {
            vmm::thread("size").spawn_scoped(scope, move || sizing.finish(stream, timeout))
        });
        let size = size.transpose().context("Cannot start a thread")?;
        let mut agent = Agent::over(stream);
        let adopted = agent.adopt(identity, timeout);
        let adopted_at = Instant::now();
        if keep
            && let Ok(adopted) = &adopted
            && adopted.failed_hook().is_some()
        {
            agent.release()?;
        }
        let size = size.map(|size| {
            let joined = size.join();
            joined.unwrap_or_else(|_| Err(anyhow!("The thread that waits for the size panicked")))
        });
        Ok(Answer::Adopted(adopted?, adopted_at, size.transpose()?))
    })
}

impl Doorbell {
    fn open(path: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            listener: listen::private(&path)?,
            path,
            caller: None,
            heard: Vec::new(),
        })
    }

    /// Whether the agent has reported. Does not block.
    ///
    /// # Errors
    /// Something else than the report came.
    pub fn has_rung(&mut self) -> anyhow::Result<bool> {
        if self.caller.is_none() {
            self.caller = self.accept()?;
        }
        let Some(caller) = &mut self.caller else {
            return Ok(false);
        };
        let mut buffer = [0; 64];
        loop {
            match caller.read(&mut buffer) {
                // A caller that hangs up early is not our agent; the next one may be.
                Ok(0) => {
                    self.caller = None;
                    self.heard.clear();
                    return Ok(false);
                }
                Ok(count) => self.heard.extend(buffer.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("Cannot hear the guest's agent"),
            }
            if self.heard.starts_with(READY_LINE) {
                return Ok(true);
            }
            if !READY_LINE.starts_with(&self.heard) {
                let heard = String::from_utf8_lossy(&self.heard);
                return Err(anyhow!(
                    "Expected the agent's \"ready\", the guest sent {heard:?}"
                ));
            }
        }
    }

    fn accept(&self) -> anyhow::Result<Option<UnixStream>> {
        let accept = || {
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true).map(|()| stream)
        };
        match accept() {
            Ok(stream) => Ok(Some(stream)),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("Cannot hear the guest's agent"),
        }
    }
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "Cannot remove a socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn bell() -> (tempfile::TempDir, Doorbell) {
        let dir = tempfile::tempdir().unwrap();
        let bell = Doorbell::open(dir.path().join("v.sock_1024")).unwrap();
        (dir, bell)
    }

    #[test]
    fn the_report_may_come_in_pieces_and_after_a_false_start() {
        let (_dir, mut bell) = bell();
        assert!(!bell.has_rung().unwrap());
        drop(UnixStream::connect(&bell.path).unwrap());
        assert!(!bell.has_rung().unwrap());
        let mut agent = UnixStream::connect(&bell.path).unwrap();
        agent.write_all(b"rea").unwrap();
        assert!(!bell.has_rung().unwrap());
        agent.write_all(b"dy\n").unwrap();
        assert!(bell.has_rung().unwrap());
    }

    #[test]
    fn another_word_is_an_error() {
        let (_dir, mut bell) = bell();
        let mut agent = UnixStream::connect(&bell.path).unwrap();
        agent.write_all(b"hello\n").unwrap();
        assert!(bell.has_rung().unwrap_err().to_string().contains("hello"));
    }

    #[test]
    fn the_socket_goes_with_the_bell() {
        let (_dir, bell) = bell();
        let path = bell.path.clone();
        drop(bell);
        assert!(!path.exists());
    }
}
