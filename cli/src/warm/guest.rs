//! What a guest is asked while it gets warm.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use proto::guest::{ExecRequest, SignalRequest, WaitResponse};
use proto::{AGENT_PORT, CallError};

use crate::agent::{Agent, PROMPT, printable};
use crate::background::Background;
use crate::{exec, hybrid, poll};

/// Where the command's output is, in the template and in every clone.
pub const LOG: &str = "/run/minivmm/warm.log";
/// What is looked at of it.
const MOST_LOG_BYTES: u64 = 1 << 20;
const SIGKILL: i32 = 9;

/// A command that runs in the guest on its own.
#[derive(Debug)]
pub struct Command {
    exec_id: String,
    /// Over this its end is waited for.
    connection: UnixStream,
    end: Background<Result<WaitResponse, CallError>>,
}

impl Command {
    /// Starts `line` in the guest's shell.
    pub fn start(vsock: &Path, line: &str, log: &str) -> anyhow::Result<Self> {
        let request = ExecRequest {
            argv: ["sh", "-c", line].map(str::to_owned).to_vec(),
            detach: true,
            log: log.to_owned(),
            ..Default::default()
        };
        let connection = hybrid::connect(vsock, AGENT_PORT, PROMPT)?;
        let mut agent = Agent::over(connection.try_clone().context("No descriptors left")?);
        let exec_id = agent.client().exec_detached(&request, PROMPT)?;
        let waited_for = exec_id.clone();
        let end = Background::start("warm", move || agent.client().wait(&waited_for))
            .context("Cannot start a thread")?;
        Ok(Self {
            exec_id,
            connection,
            end,
        })
    }

    /// Waits for its end until `deadline`: `None` when it goes on, else empty or how it failed.
    pub fn ends_by(&self, deadline: Instant) -> anyhow::Result<Option<String>> {
        if !poll::readable(&self.end, Some(deadline)).context("Cannot wait for the guest")? {
            return Ok(None);
        }
        let Some(end) = self.end.take() else {
            bail!("The end of a command was not reported");
        };
        let end = end.context("The guest's agent has gone away")?;
        Ok(Some(match (end.code, end.signal) {
            (0, 0) => String::new(),
            (code, 0) => format!("ended with code {code}"),
            (_, signal) => format!("was ended by signal {signal}"),
        }))
    }

    /// Ends it, and waits for that.
    pub fn kill(self, vsock: &Path) -> anyhow::Result<()> {
        let request = SignalRequest {
            exec_id: self.exec_id.clone(),
            signal: SIGKILL,
            ..Default::default()
        };
        match Agent::connect(vsock)?.client().signal(&request, PROMPT) {
            // It has ended in this moment.
            Ok(()) | Err(CallError::Refused { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.ends_by(Instant::now() + PROMPT).map(drop)
    }

    /// Leaves it to itself, without a connection that would be in the template.
    pub fn leave(self) -> anyhow::Result<()> {
        self.connection
            .shutdown(Shutdown::Both)
            .context("Cannot close the agent's connection")?;
        // The thread that waits over it ends now.
        poll::readable(&self.end, Some(Instant::now() + PROMPT)).map(drop)?;
        Ok(())
    }
}

impl AsFd for Command {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }
}

/// The end of what the command has printed so far.
pub fn log(vsock: &Path) -> anyhow::Result<String> {
    let request = ExecRequest {
        argv: ["show", LOG].map(str::to_owned).to_vec(),
        tool: true,
        ..Default::default()
    };
    let mut session = exec::start(vsock, &request)?;
    let stream = &session.streams.stdout;
    let mut bytes = Vec::new();
    stream
        .set_read_timeout(Some(PROMPT))
        .and_then(|()| stream.take(MOST_LOG_BYTES).read_to_end(&mut bytes))
        .context("Cannot read the command's output")?;
    session.agent.client().wait(&session.exec_id)?;
    Ok(printable(&String::from_utf8_lossy(&bytes)))
}
