//! A program that runs, and how it ended. Every wait has a deadline.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::captured::Captured;
use crate::watch::{LIMIT, process_ends};

/// What is shown of a stream when a test fails.
const SHOWN_BYTES: usize = 6000;

/// A program that runs beside the test. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    started: Instant,
    stdin: Option<ChildStdin>,
    stdout: Captured,
    stderr: Captured,
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Ended {
    line: String,
    status: ExitStatus,
    took: Duration,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Running {
    /// Starts a program. Its standard input is a pipe when `command` does not say otherwise.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        Self::start_with_output(command, Stdio::piped())
    }

    /// Starts a program whose standard output goes elsewhere.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    #[must_use]
    pub fn start_with_output(command: &mut Command, output: impl Into<Stdio>) -> Self {
        let line = described(command);
        command.stdout(output).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start {line}: {error}"),
        };
        Self {
            line,
            started: Instant::now(),
            stdin: child.stdin.take(),
            stdout: Captured::of(child.stdout.take()),
            stderr: Captured::of(child.stderr.take()),
            child,
        }
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has printed on standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has printed `text`.
    ///
    /// # Panics
    /// It ended, or took too long.
    #[track_caller]
    pub fn until_stdout(&self, text: &str) -> &Self {
        self.until(&self.stdout, text)
    }

    /// Waits until it has printed `text` on standard error.
    ///
    /// # Panics
    /// It ended, or took too long.
    #[track_caller]
    pub fn until_stderr(&self, text: &str) -> &Self {
        self.until(&self.stderr, text)
    }

    #[track_caller]
    fn until(&self, stream: &Captured, text: &str) -> &Self {
        let found = stream.until(|bytes| contains(bytes, text.as_bytes()));
        assert!(
            found,
            "{text:?} was not printed by {} within {:?}{}",
            self.line,
            self.started.elapsed(),
            shown(&self.stdout.bytes(), &self.stderr.bytes())
        );
        self
    }

    /// Writes to its standard input.
    ///
    /// # Panics
    /// It cannot be written to.
    #[track_caller]
    pub fn type_in(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    /// Closes its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It cannot be sent.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it has not ended yet.
    ///
    /// # Panics
    /// The system does not tell.
    #[must_use]
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end, with its standard input open as it is.
    ///
    /// # Panics
    /// It took too long, or something else keeps its output open.
    #[track_caller]
    #[must_use]
    pub fn wait(mut self) -> Ended {
        let in_time = process_ends(Pid::from_child(&self.child), LIMIT);
        if !in_time {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        let took = self.started.elapsed();
        let closed = self.stdout.until_end() && self.stderr.until_end();
        let ended = Ended {
            line: self.line.clone(),
            status,
            took,
            stdout: self.stdout.bytes(),
            stderr: self.stderr.bytes(),
        };
        assert!(in_time, "it did not end and was killed: {}", ended.report());
        assert!(
            closed,
            "its output is still held open by another process: {}",
            ended.report()
        );
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap_or_default();
            self.child.wait().map(drop).unwrap_or_default();
        }
    }
}

impl Ended {
    /// It ended with exit code 0.
    ///
    /// # Panics
    /// It did not.
    #[track_caller]
    pub fn ok(&self) -> &Self {
        self.fails(0)
    }

    /// It ended with this exit code, and not by a panic.
    ///
    /// # Panics
    /// It did not.
    #[track_caller]
    pub fn fails(&self, code: i32) -> &Self {
        assert_eq!(self.code(), Some(code), "exit code of {}", self.report());
        assert!(!self.stderr().contains("panicked at"), "{}", self.report());
        self
    }

    /// Standard error has this part.
    ///
    /// # Panics
    /// It has not.
    #[track_caller]
    pub fn says(&self, part: &str) -> &Self {
        assert!(
            self.stderr().contains(part),
            "{part:?} is missing: {}",
            self.report()
        );
        self
    }

    /// Standard output has this part.
    ///
    /// # Panics
    /// It has not.
    #[track_caller]
    pub fn prints(&self, part: &str) -> &Self {
        assert!(
            self.text().contains(part),
            "{part:?} is missing: {}",
            self.report()
        );
        self
    }

    /// The exit code; `None` when a signal ended it.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it.
    #[must_use]
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(&self) -> &[u8] {
        &self.stdout
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as JSON, whatever the exit code.
    ///
    /// # Panics
    /// It printed something else.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("not JSON: {error}: {}", self.report()),
        }
    }

    /// The command with all it printed.
    #[must_use]
    pub fn report(&self) -> String {
        let output = shown(&self.stdout, &self.stderr);
        format!("{} ({}, {:?}){output}", self.line, self.status, self.took)
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn described(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    format!("'{}'", words.join(" "))
}

fn shown(stdout: &[u8], stderr: &[u8]) -> String {
    let mut report = String::new();
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        let tail = &bytes[bytes.len().saturating_sub(SHOWN_BYTES)..];
        let text = String::from_utf8_lossy(tail);
        write!(report, "\n--- {name}, {} bytes\n{text}", bytes.len()).unwrap();
    }
    report
}
