//! Runs a command in a guest with this process's standard streams; [`session`] is the poll loop
//! that moves bytes, signals and window sizes until the end.

pub mod session;

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use proto::stdio::{Attach, Stream};
use proto::{CallError, STDIO_PORT, guest};
use ttrpc::Code;

use crate::agent::{Agent, PROMPT};
use crate::error::{SUCCESS, coded, describe};
use crate::stream::{self, Opened};

/// minivmm itself failed.
pub const FAILED: u8 = 125;
/// The command exists and cannot be executed.
const CANNOT_EXECUTE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;

/// Runs the command through the VM's vsock socket and returns its exit code.
///
/// # Errors
/// The command could not be run, or the connection to it was lost. The error's exit code says
/// which.
pub fn run(vsock: &Path, request: &guest::ExecRequest) -> anyhow::Result<u8> {
    start(vsock, request)
        .and_then(session::Session::run)
        .map_err(|error| coded(code_of(&error), describe(&error)))
}

/// Starts the command, which is on its own from then on.
///
/// # Errors
/// It could not be started. The error's exit code says why.
pub fn start_detached(vsock: &Path, request: &guest::ExecRequest) -> anyhow::Result<u8> {
    let started = Agent::connect(vsock)
        .map_err(anyhow::Error::from)
        .and_then(|mut agent| Ok(agent.client().exec_detached(request, PROMPT)?));
    match started {
        Ok(_) => Ok(SUCCESS),
        Err(error) => Err(coded(code_of(&error), describe(&error))),
    }
}

/// Starts the command with its streams.
///
/// # Errors
/// It could not be started; a [`CallError`] is in the chain when it was refused.
pub fn start<'a>(
    vsock: &'a Path,
    request: &guest::ExecRequest,
) -> anyhow::Result<session::Session<'a>> {
    let mut agent = Agent::connect(vsock)?;
    let exec_id = agent.client().exec(request, PROMPT)?;
    let streams = session::Streams {
        stdin: request
            .stdin
            .then(|| attach(vsock, &exec_id, Stream::Stdin))
            .transpose()?,
        stdout: attach(vsock, &exec_id, Stream::Stdout)?,
        stderr: (!request.tty)
            .then(|| attach(vsock, &exec_id, Stream::Stderr))
            .transpose()?,
    };
    Ok(session::Session {
        vsock,
        agent,
        exec_id,
        tty: request.tty,
        streams,
    })
}

fn attach(vsock: &Path, exec_id: &str, stream: Stream) -> anyhow::Result<UnixStream> {
    let exec_id = exec_id.to_owned();
    let line = Attach { exec_id, stream }.to_string();
    let opened = stream::open(vsock, STDIO_PORT, &line)
        .with_context(|| format!("Cannot attach the command's {stream}"))?;
    match opened {
        Opened::Stream(connection) => Ok(connection),
        Opened::Refused(reason) => bail!("The agent refused the command's {stream}: {reason}"),
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(CallError::Refused { code, .. }) => match code {
            Code::NOT_FOUND => NOT_FOUND,
            Code::PERMISSION_DENIED => CANNOT_EXECUTE,
            _ => FAILED,
        },
        _ => FAILED,
    }
}
