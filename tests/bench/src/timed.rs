//! A program that is timed from its start to the first line that it prints.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A program that has printed its first line. It is killed when this is dropped.
#[derive(Debug)]
pub struct Timed {
    child: Child,
    output: BufReader<ChildStdout>,
    first_line: String,
    /// From before the start until the line was read.
    pub took: Duration,
}

impl Timed {
    /// Starts it and waits for the line. What it says on standard error is passed on.
    ///
    /// # Errors
    /// It cannot be started, or ends without a line.
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let begin = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("Cannot start {command:?}"))?;
        let output = child.stdout.take().context("It has no output")?;
        let mut timed = Self {
            child,
            output: BufReader::new(output),
            first_line: String::new(),
            took: Duration::ZERO,
        };
        timed.output.read_line(&mut timed.first_line)?;
        timed.took = begin.elapsed();
        if timed.first_line.is_empty() {
            bail!("{command:?} printed nothing");
        }
        Ok(timed)
    }

    /// Waits for its end. Returns all that it has printed.
    ///
    /// # Errors
    /// It failed.
    pub fn finish(mut self) -> anyhow::Result<String> {
        let mut printed = std::mem::take(&mut self.first_line);
        self.output.read_to_string(&mut printed)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("It ended with {status}");
        }
        Ok(printed)
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        // One that has ended already is no error.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// In milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
