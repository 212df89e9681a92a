//! Asks a VM process.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail};

use super::{Asked, MAX_LINE_BYTES, Reply, Request, VERSION};
use crate::id::VmId;
use crate::json_lines;
use crate::state::dir::VmDir;

/// How long a VM process may take for what it does at once.
pub const PROMPT: Duration = Duration::from_secs(10);

/// Sends one request and returns the reply. `None` as the time-out waits until the VM ends.
///
/// # Errors
/// The VM process is gone, does not answer in time, or answers that it could not.
pub fn ask(dir: &VmDir, request: Request, timeout: Option<Duration>) -> anyhow::Result<Reply> {
    let id = dir.id();
    let path = dir.control_socket();
    let stream = UnixStream::connect(&path)
        .with_context(|| format!("Cannot reach the process of VM {id} at {}", path.display()))?;
    match exchange(&stream, request, timeout) {
        Ok(Reply::Error { message }) => bail!("VM {id}: {message}"),
        Ok(reply) => Ok(reply),
        Err(error) => Err(explain(error, id, timeout)),
    }
}

fn exchange(stream: &UnixStream, request: Request, timeout: Option<Duration>) -> io::Result<Reply> {
    let asked = Asked {
        version: VERSION,
        request,
    };
    stream.set_write_timeout(timeout)?;
    stream.set_read_timeout(timeout)?;
    json_lines::send(stream, &asked)?;

    let mut answer = Vec::new();
    let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
    BufReader::new(stream.take(limit)).read_until(b'\n', &mut answer)?;
    if !answer.ends_with(b"\n") {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

fn explain(error: io::Error, id: &VmId, timeout: Option<Duration>) -> anyhow::Error {
    let what = match (error.kind(), timeout) {
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, Some(timeout)) => {
            let seconds = timeout.as_secs_f32();
            return anyhow::anyhow!(
                "The process of VM {id} did not answer within {seconds} s; \
                 'minivmm rm -f {id}' ends it"
            );
        }
        (ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe, _) => {
            "ended before it answered"
        }
        _ => "gave no proper answer",
    };
    anyhow::Error::new(error).context(format!("The process of VM {id} {what}"))
}
