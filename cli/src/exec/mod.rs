//! Runs a command in a guest with this process's standard streams; [`session`] is the poll loop
//! that moves bytes, signals and window sizes until the end.

mod session;

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use proto::stdio::{ACCEPTED, Attach, MAX_LINE_BYTES, REFUSED_PREFIX, Stream};
use proto::{CallError, STDIO_PORT, guest};
use ttrpc::Code;

use crate::agent::{Agent, PROMPT};
use crate::error::{coded, describe};
use crate::hybrid;

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

fn start<'a>(
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
    let context = || format!("Cannot attach the command's {stream}");
    let connection = hybrid::connect(vsock, STDIO_PORT, PROMPT).with_context(context)?;
    let exec_id = exec_id.to_owned();
    let line = format!("{}\n", Attach { exec_id, stream });
    io::Write::write_all(&mut &connection, line.as_bytes()).with_context(context)?;

    let answer = hybrid::read_line(&connection, PROMPT, MAX_LINE_BYTES).map_err(|error| {
        let silent = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        if silent {
            io::Error::other("the agent did not answer in time")
        } else {
            error
        }
    });
    let answer = answer.with_context(context)?;
    let answer = String::from_utf8_lossy(&answer);
    if answer != ACCEPTED {
        let reason = answer.trim_end();
        let reason = reason.strip_prefix(REFUSED_PREFIX).unwrap_or(reason);
        bail!("The agent refused the command's {stream}: {reason}");
    }
    Ok(connection)
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
