//! A tool of the guest's agent while it runs.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, bail};
use proto::guest::ExecRequest;
use proto::{CallError, guest};
use ttrpc::Code;

use crate::agent::{Agent, printable};
use crate::background::Background;
use crate::exec;
use crate::poll;

/// What is kept of the words of a guest, which may have many.
const MOST_WORDS_BYTES: u64 = 64 * 1024;

/// The tool and its streams.
#[derive(Debug)]
pub struct Tool {
    agent: Agent,
    exec_id: String,
    streams: exec::session::Streams,
    words: Background<Vec<u8>>,
}

/// What a tool had to say in the end.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Ended {
    /// What is worth telling.
    pub notes: Vec<String>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Tool {
    /// Starts it.
    ///
    /// # Errors
    /// The agent does not answer, or does not know the tool.
    pub fn start(vsock: &Path, words: &[&str], stdin: bool) -> anyhow::Result<Self> {
        let request = ExecRequest {
            argv: words.iter().map(|&word| word.to_owned()).collect(),
            stdin,
            tool: true,
            ..Default::default()
        };
        let session = exec::start(vsock, &request).map_err(explain)?;
        let Some(stderr) = &session.streams.stderr else {
            bail!("The agent gave the tool no standard error");
        };
        let stderr = stderr.try_clone().context("No descriptors left")?;
        let words = Background::start("words", move || words_of(stderr));
        Ok(Self {
            agent: session.agent,
            exec_id: session.exec_id,
            streams: session.streams,
            words: words.context("Cannot start a thread")?,
        })
    }

    /// What it reads.
    pub fn stdin(&self) -> Option<&UnixStream> {
        self.streams.stdin.as_ref()
    }

    /// What it writes.
    pub fn stdout(&self) -> &UnixStream {
        &self.streams.stdout
    }

    /// Its end, which is waited for when its streams have come to theirs. Otherwise it ends because
    /// they are closed.
    ///
    /// # Errors
    /// The VM has ended, or its agent.
    pub fn end(mut self, streams_are_over: bool) -> anyhow::Result<Ended> {
        if !streams_are_over {
            self.streams.stdin = None;
            if let Err(error) = self.streams.stdout.shutdown(Shutdown::Both) {
                tracing::debug!(%error, "The guest has closed the stream already");
            }
        }
        let end = self.agent.client().wait(&self.exec_id);
        let end = end.context("The VM or its agent has gone away")?;
        poll::readable(&self.words, None).context("Cannot wait for the agent's words")?;
        let words = self.words.take().unwrap_or_default();
        Ok(Ended::new(&words, &end))
    }
}

impl Ended {
    fn new(words: &[u8], end: &guest::WaitResponse) -> Self {
        let words = printable(&String::from_utf8_lossy(words));
        let with = |kind: &'static str| {
            words
                .lines()
                .filter_map(move |line| line.strip_prefix(kind))
        };
        let notes = with("note: ").map(str::to_owned).collect();
        let error = match (end.code, end.signal) {
            (0, 0) => None,
            (code, signal) => Some(match with("error: ").next_back() {
                Some(error) => error.to_owned(),
                None if signal != 0 => format!("The agent's tool was ended by signal {signal}"),
                None => format!("The agent's tool ended with code {code}"),
            }),
        };
        Self { notes, error }
    }
}

fn words_of(stderr: UnixStream) -> Vec<u8> {
    let mut words = Vec::new();
    // The rest is taken as well, so that the tool comes to its end.
    let read = (&stderr)
        .take(MOST_WORDS_BYTES)
        .read_to_end(&mut words)
        .and_then(|_| io::copy(&mut &stderr, &mut io::sink()));
    // What came before a failure is all that there is.
    if let Err(error) = read {
        tracing::debug!(%error, "Cannot read what the agent's tool prints");
    }
    words
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        // An older agent takes the tool's name for a program's.
        Some(CallError::Refused {
            code: Code::NOT_FOUND,
            ..
        }) => error.context(
            "The guest's agent does not know how; build the guest anew with 'minivmm guest build'",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(words: &str, code: i32, signal: i32) -> Ended {
        let end = guest::WaitResponse {
            code,
            signal,
            ..Default::default()
        };
        Ended::new(words.as_bytes(), &end)
    }

    #[test]
    fn words_are_told_apart_and_cannot_steer_a_terminal() {
        let told = ended("note: a\x1b[2J\nwhat?\nerror: no\nerror: full\n", 1, 0);
        assert_eq!(told.notes, ["a\u{fffd}[2J"]);
        assert_eq!(told.error.as_deref(), Some("full"));
        assert_eq!(ended("error: x", 0, 0), Ended::default());
        assert!(ended("", 0, 9).error.unwrap().contains("signal 9"));
        assert!(ended("", 3, 0).error.unwrap().contains("code 3"));
    }
}
