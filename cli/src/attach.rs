//! The user's terminal attached to a VM's console.

use std::io::{self, IsTerminal};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use anyhow::Context;
use rustix::event::PollFlags;

use crate::copy::{Progress, StreamCopy};
use crate::terminal::RawMode;

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// Standard input and output, copied to and from a console until one of them ends.
#[derive(Debug)]
pub struct Attachment {
    input: Option<StreamCopy>,
    output: Option<StreamCopy>,
    /// Restores the terminal when it is dropped.
    _raw: Option<RawMode>,
}

/// Where an [`Attachment`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// It goes on.
    Yes,
    /// The console has ended and all of its output was written.
    Ended,
    /// The user typed Ctrl-].
    Left,
}

impl Attachment {
    /// Attaches to `console`. A terminal on standard input goes into raw mode.
    ///
    /// # Errors
    /// The terminal refused, or no descriptors are left.
    pub fn new(console: &UnixStream) -> anyhow::Result<Self> {
        let raw = RawMode::enter().context("Cannot put the terminal into raw mode")?;
        console
            .set_nonblocking(true)
            .context("Cannot set up the console's socket")?;
        let copies = || -> io::Result<(StreamCopy, StreamCopy)> {
            let input = StreamCopy::new(&io::stdin(), console)?;
            Ok((input, StreamCopy::new(console, &io::stdout())?))
        };
        let (input, output) = copies().context("Cannot use the standard streams")?;
        let input = if raw.is_some() {
            input.end_at(ESCAPE)
        } else {
            input
        };
        Ok(Self {
            input: Some(input),
            output: Some(output),
            _raw: raw,
        })
    }

    /// How to leave, when that is worth telling.
    pub fn hint() -> Option<&'static str> {
        (io::stdin().is_terminal() && io::stderr().is_terminal()).then_some("Ctrl-] leaves")
    }

    /// What to poll for, the input first.
    pub fn fds(&self) -> [Option<(BorrowedFd<'_>, PollFlags)>; 2] {
        [&self.input, &self.output].map(|copy| copy.as_ref().and_then(StreamCopy::poll_for))
    }

    /// Moves what can be moved. `ready` says which of [`Attachment::fds`] are.
    ///
    /// # Errors
    /// Standard output failed.
    pub fn step(&mut self, ready: [bool; 2]) -> anyhow::Result<Attached> {
        let [input_ready, output_ready] = ready;
        if input_ready && let Some(copy) = &mut self.input {
            // A terminal that has gone away reads as an error; that is its end.
            match copy.step().unwrap_or(Progress::Ended) {
                Progress::Open => {}
                Progress::Escaped => return Ok(Attached::Left),
                // What the guest prints is still of interest.
                Progress::Ended | Progress::Broken => self.input = None,
            }
        }
        if output_ready && let Some(copy) = &mut self.output {
            let progress = copy.step().context("Cannot copy the console's output")?;
            if progress != Progress::Open {
                self.output = None;
            }
        }
        let goes_on = self.output.is_some();
        Ok(if goes_on {
            Attached::Yes
        } else {
            Attached::Ended
        })
    }
}
