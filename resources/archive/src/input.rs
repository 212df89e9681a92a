//! A stream of which only so much may be read as is expected next.
//!
//! Names in a tar stream can be announced as gigabytes long, and the parser would keep them all.

use std::cell::Cell;
use std::io::{self, Read};

/// What is between two files' contents: headers with names, and padding.
const HEADERS_BYTES: u64 = 1 << 20;

/// How much may be read.
#[derive(Debug, Default)]
pub struct Allowance(Cell<u64>);

impl Allowance {
    /// Headers are read next.
    pub fn headers(&self) {
        self.0.set(HEADERS_BYTES);
    }

    /// Contents of that size are read next.
    pub fn contents(&self, size: u64) {
        self.0.set(size.saturating_add(HEADERS_BYTES));
    }
}

/// The stream.
#[derive(Debug)]
pub struct Input<'a, R> {
    pub stream: R,
    pub allowance: &'a Allowance,
}

impl<R: Read> Read for Input<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.allowance.0.get()).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        if length == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!(
                "more than {HEADERS_BYTES} bytes of headers for one file"
            )));
        }
        let count = self
            .stream
            .read(buffer.get_mut(..length).unwrap_or_default())?;
        self.allowance.0.set((left - count) as u64);
        Ok(count)
    }
}
