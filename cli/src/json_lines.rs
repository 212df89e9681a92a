//! JSON objects over a socket, one a line.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::poll;

/// Longer than any line that one of our processes writes, in bytes.
const LONGEST_LINE: usize = 1 << 20;

/// Writes one line.
///
/// # Errors
/// The other side is gone, or its buffer is full on a socket that does not block.
pub fn send(mut stream: &UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Waits for the first line, on a socket that does not block; `None` when the other side is gone without one.
///
/// # Errors
/// The socket failed, what came is none of ours, or nothing came until `deadline` ([`ErrorKind::TimedOut`]).
pub fn first<T: DeserializeOwned>(
    stream: &UnixStream,
    deadline: Option<Instant>,
) -> io::Result<Option<T>> {
    let mut lines = Lines::default();
    loop {
        let (mut values, open) = lines.receive(stream)?;
        if let Some(value) = values.pop_front() {
            return Ok(Some(value));
        }
        if !open {
            return Ok(None);
        }
        if !poll::readable(stream, deadline)? {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}

/// Lines that come in pieces, from a socket that does not block.
#[derive(Debug, Default)]
pub struct Lines {
    received: Vec<u8>,
}

impl Lines {
    /// The lines that have come whole, and whether there may be more.
    ///
    /// # Errors
    /// The socket failed, or what came is none of ours.
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        mut stream: &UnixStream,
    ) -> io::Result<(VecDeque<T>, bool)> {
        let mut buffer = [0; 4096];
        let open = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break false,
                Ok(count) => self.received.extend(buffer.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                // A process that was killed with our bytes unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break false,
                Err(error) => return Err(error),
            }
            if self.received.len() > LONGEST_LINE {
                return Err(io::Error::other(format!(
                    "a line has more than {LONGEST_LINE} bytes"
                )));
            }
        };
        let mut values = VecDeque::new();
        while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            values.push_back(serde_json::from_slice(&line)?);
        }
        Ok((values, open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn lines_come_in_order_in_pieces_and_then_the_end() {
        let (ours, theirs) = pair();
        let mut lines = Lines::default();
        let mut receive = || lines.receive::<u32>(&theirs).unwrap();
        send(&ours, &1).unwrap();
        (&ours).write_all(b"2\n3").unwrap();
        assert_eq!(receive(), (VecDeque::from([1, 2]), true));
        (&ours).write_all(b"4\n").unwrap();
        drop(ours);
        assert_eq!(receive(), (VecDeque::from([34]), false));
    }

    #[test]
    fn what_is_no_line_of_ours_is_an_error() {
        for (sent, expected) in [
            (b"x\n".to_vec(), "expected value"),
            (vec![b'1'; LONGEST_LINE + 1], "more than"),
        ] {
            let (ours, theirs) = pair();
            let writer = std::thread::spawn(move || (&ours).write_all(&sent));
            let mut lines = Lines::default();
            let error = loop {
                match lines.receive::<u32>(&theirs) {
                    Ok(_) => std::thread::yield_now(),
                    Err(error) => break error.to_string(),
                }
            };
            assert!(error.contains(expected), "{error}");
            drop(theirs);
            writer.join().unwrap().unwrap_or_default();
        }
    }
}
