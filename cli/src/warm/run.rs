//! Runs a command in a guest until the guest is warm.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use proto::FORWARD_PORT;

use super::guest::{Command, LOG, log};
use super::{Job, Ready, Warm};
use crate::error::describe;
use crate::poll;
use crate::stream::{self, Opened};

/// How often it is looked whether a command is ready: nothing in a guest tells when a port is opened.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How much of its output is shown when it fails.
const SHOWN_LINES: usize = 20;

/// Makes the guest warm.
///
/// # Errors
/// The command fails, or is not ready in time.
pub fn warm_up(job: &Job) -> anyhow::Result<()> {
    let Job { vsock, warm } = job;
    let deadline = Instant::now() + warm.timeout;
    let command = Command::start(vsock, &warm.command, LOG)
        .map_err(|error| anyhow!("The warm command cannot be started: {}", describe(&error)))?;
    let result = match &warm.ready {
        None => run_to_its_end(&command, warm, deadline),
        Some(ready) => wait_until_ready(vsock, &command, ready, warm, deadline),
    };
    match result {
        Ok(()) => command.leave(),
        Err(error) => Err(with_output(vsock, error)),
    }
}

fn run_to_its_end(command: &Command, warm: &Warm, deadline: Instant) -> anyhow::Result<()> {
    match command.ends_by(deadline)?.as_deref() {
        Some("") => Ok(()),
        Some(how) => bail!("The warm command {how}"),
        None => bail!(
            "The warm command did not end within {} s; --ready tells when one that runs on is \
             ready, --ready-timeout gives it more time",
            warm.timeout.as_secs()
        ),
    }
}

fn wait_until_ready(
    vsock: &Path,
    command: &Command,
    ready: &Ready,
    warm: &Warm,
    deadline: Instant,
) -> anyhow::Result<()> {
    loop {
        let is_ready = is_ready(vsock, ready, deadline)?;
        // One that has ended is not in the clones, however ready it was.
        match command.ends_by(Instant::now())?.as_deref() {
            Some("") => bail!("The warm command ended with code 0, but is to run on with --ready"),
            Some(how) => bail!("The warm command {how} before it was ready"),
            None if is_ready => return Ok(()),
            None => {}
        }
        let now = Instant::now();
        if now >= deadline {
            let seconds = warm.timeout.as_secs();
            bail!("The warm command was not ready within {seconds} s: {ready}");
        }
        poll::readable(&command.as_fd(), Some(deadline.min(now + LOOK_AGAIN)))?;
    }
}

fn is_ready(vsock: &Path, ready: &Ready, deadline: Instant) -> anyhow::Result<bool> {
    match ready {
        Ready::Output(pattern) => Ok(pattern.is_match(&log(vsock)?)),
        Ready::Connect(target) => match stream::open(vsock, FORWARD_PORT, &target.to_string())? {
            Opened::Stream(_) => Ok(true),
            Opened::Refused(_) => Ok(false),
        },
        Ready::Exec(line) => {
            let check = Command::start(vsock, line, "")?;
            match check.ends_by(deadline)?.as_deref() {
                Some(how) => Ok(how.is_empty()),
                None => check.kill(vsock).map(|()| false),
            }
        }
    }
}

fn with_output(vsock: &Path, error: anyhow::Error) -> anyhow::Error {
    let error = describe(&error);
    let output = log(vsock).unwrap_or_default();
    let lines: Vec<&str> = output.lines().collect();
    let last = lines.get(lines.len().saturating_sub(SHOWN_LINES)..);
    match last.unwrap_or_default() {
        [] => anyhow!("{error}; it printed nothing"),
        last => anyhow!("{error}; its output ends with:\n{}", last.join("\n")),
    }
}
