//! A program that is timed from its start to the first line that it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A program that has printed its first line. It is killed when this is dropped.
#[derive(Debug)]
pub struct Timed {
    child: Child,
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
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let timed = Self {
            child,
            took: begin.elapsed(),
        };
        if line.is_empty() {
            bail!("{command:?} printed nothing");
        }
        Ok(timed)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It failed.
    pub fn finish(mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("It ended with {status}");
        }
        Ok(())
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
