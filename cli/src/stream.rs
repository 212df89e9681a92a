//! Opens a stream on one of the agent's ports: a line that says which, and the answer.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use proto::stdio::{ACCEPTED, MAX_LINE_BYTES, REFUSED_PREFIX};

use crate::agent::{PROMPT, printable};
use crate::hybrid;

/// The agent's answer.
#[derive(Debug)]
pub enum Opened {
    /// It takes the stream.
    Stream(UnixStream),
    /// It does not; the reason.
    Refused(String),
}

/// Asks the agent for a stream with `line`, which has no newline.
///
/// # Errors
/// The VM or its agent is not there, or does not answer in time.
pub fn open(vsock: &Path, port: u32, line: &str) -> anyhow::Result<Opened> {
    let connection = hybrid::connect(vsock, port, PROMPT)?;
    (&connection)
        .write_all(format!("{line}\n").as_bytes())
        .context("Cannot ask the agent")?;
    let answer = hybrid::read_line(&connection, PROMPT, MAX_LINE_BYTES).map_err(|error| {
        let silent = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        if silent {
            io::Error::other("the agent did not answer in time")
        } else {
            error
        }
    })?;
    let answer = String::from_utf8_lossy(&answer);
    if answer == ACCEPTED {
        return Ok(Opened::Stream(connection));
    }
    let reason = answer.trim_end();
    let reason = reason.strip_prefix(REFUSED_PREFIX).unwrap_or(reason);
    Ok(Opened::Refused(printable(reason)))
}
