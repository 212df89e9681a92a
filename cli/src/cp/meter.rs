//! Shows on a terminal how much of a stream has passed.

use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};

use crate::output;

/// A copy that is done within this is not worth a line.
const QUIET_TIME: Duration = Duration::from_secs(1);
/// How often the line is brought up to date.
const REFRESH: Duration = Duration::from_millis(200);

/// A stream whose bytes are counted. The line goes away with it.
#[derive(Debug)]
pub struct Meter<S> {
    stream: S,
    bytes: u64,
    start: Instant,
    /// When the line is shown next; `None` when nobody would see it.
    next: Option<Instant>,
    shown: bool,
}

impl<S> Meter<S> {
    /// Counts what is read from or written to `stream`.
    pub fn new(stream: S, quiet: bool) -> Self {
        let start = Instant::now();
        let visible = !quiet && io::stderr().is_terminal();
        Self {
            stream,
            bytes: 0,
            start,
            next: visible.then(|| start + QUIET_TIME),
            shown: false,
        }
    }

    fn count(&mut self, count: usize) {
        self.bytes += count as u64;
        let now = Instant::now();
        if self.next.is_some_and(|next| next <= now) {
            self.next = Some(now + REFRESH);
            self.shown = true;
            let milliseconds = (now - self.start).as_millis().max(1);
            let rate = u128::from(self.bytes) * 1000 / milliseconds;
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            let (bytes, rate) = (output::size(self.bytes), output::size(rate));
            print(&format!("\r\x1b[K{bytes}, {rate}/s"));
        }
    }
}

impl<S: Read> Read for Meter<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.count(count);
        Ok(count)
    }
}

impl<S: Write> Write for Meter<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(buffer)?;
        self.count(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S> Drop for Meter<S> {
    fn drop(&mut self) {
        if self.shown {
            print("\r\x1b[K");
        }
    }
}

fn print(text: &str) {
    let mut stderr = io::stderr().lock();
    // Without a standard error there is nobody to tell that it is missing.
    if stderr.write_all(text.as_bytes()).is_ok() {
        stderr.flush().unwrap_or_default();
    }
}
