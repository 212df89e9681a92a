//! Moves one stream of a command, in one direction.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, ioctl_fionread, read, write};
use rustix::net::{SendFlags, send};

/// How much is moved at a time.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// How many chunks are moved before others get their turn.
const TURN_CHUNKS: usize = 16;
/// What is at least delivered after the process has ended: more than a terminal holds, which does
/// not tell how much that is, and an end to what processes in the background go on printing.
const REST_BYTES: u64 = 256 * 1024;
/// The end-of-file character of a terminal (control-D).
const TERMINAL_EOF: u8 = 4;

/// What a turn ended with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// Nothing more can be moved for now.
    Blocked,
    /// There is more to move, but it is another stream's turn.
    Unfinished,
    /// Everything has been moved, and both ends are closed.
    Finished,
    /// Nobody takes it any more. Both ends are closed.
    SinkLost,
}

/// A stream between a command and its host. Neither descriptor blocks.
#[derive(Debug)]
pub struct Pump {
    source: Option<OwnedFd>,
    sink: Option<OwnedFd>,
    /// Read and not yet written.
    pending: Vec<u8>,
    /// How much of it is written.
    written: usize,
    /// How much more to read once the process has ended.
    rest_bytes: Option<u64>,
    /// With nothing to be read now, nothing more is waited for.
    ends_when_empty: bool,
    /// The sink is a terminal: closing it is not end of file.
    sink_is_terminal: bool,
    at_line_start: bool,
}

impl Pump {
    /// Moves `early` and then all of `source` to `sink`.
    pub fn new(source: Option<OwnedFd>, sink: OwnedFd, early: Vec<u8>) -> Self {
        Self {
            source,
            sink: Some(sink),
            pending: early,
            written: 0,
            rest_bytes: None,
            ends_when_empty: false,
            sink_is_terminal: false,
            at_line_start: true,
        }
    }

    /// As `new`, to a terminal.
    pub fn to_terminal(source: OwnedFd, sink: OwnedFd, early: Vec<u8>) -> Self {
        Self {
            sink_is_terminal: true,
            ..Self::new(Some(source), sink, early)
        }
    }

    /// The descriptor that is read.
    pub fn source(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(AsFd::as_fd)
    }

    /// The descriptor that is written.
    pub fn sink(&self) -> Option<BorrowedFd<'_>> {
        self.sink.as_ref().map(AsFd::as_fd)
    }

    /// The process that writes to the source has ended: what it has written is still moved, what
    /// others add is not waited for.
    ///
    /// A pipe holds all of that now. A terminal may not have it in its reader's buffer yet and says
    /// when it has been closed, so that its rest comes until then, or `end_when_empty`.
    pub fn process_ended(&mut self, source_is_terminal: bool) {
        let waiting = self
            .source
            .as_ref()
            .and_then(|source| ioctl_fionread(source).ok());
        self.rest_bytes = Some(waiting.unwrap_or(0).max(REST_BYTES));
        self.ends_when_empty = !source_is_terminal;
    }

    /// The source will not be closed: what it holds is all that is moved.
    pub fn end_when_empty(&mut self) {
        self.ends_when_empty = true;
    }

    /// Whether the sink, a socket, has nobody on its other side.
    pub fn sink_is_dead(&self) -> bool {
        let dead = |errno| !matches!(errno, Errno::AGAIN | Errno::INTR);
        // Sending nothing tells a peer that is gone from one that has only finished sending, which
        // epoll's flags do not for vsock.
        self.sink
            .as_ref()
            .is_some_and(|sink| send(sink, &[], SendFlags::NOSIGNAL).is_err_and(dead))
    }

    /// Closes both ends, whatever is left.
    pub fn abandon(&mut self) {
        self.source = None;
        self.sink = None;
    }

    /// Moves what can be moved without blocking. `chunk` is scratch space.
    pub fn turn(&mut self, chunk: &mut [u8]) -> Progress {
        for _ in 0..TURN_CHUNKS {
            match self.write_pending() {
                Ok(()) => {}
                Err(Errno::AGAIN) => return Progress::Blocked,
                Err(_) => {
                    self.abandon();
                    return Progress::SinkLost;
                }
            }
            match self.read_chunk(chunk) {
                Ok(0) if self.source_ended() => {}
                Ok(0) => {
                    self.abandon();
                    return Progress::Finished;
                }
                Ok(_) => {}
                Err(_) => return Progress::Blocked,
            }
        }
        Progress::Unfinished
    }

    /// Writes what is pending, and fails with `AGAIN` unless that is all.
    fn write_pending(&mut self) -> Result<(), Errno> {
        while let Some(bytes) = self
            .pending
            .get(self.written..)
            .filter(|bytes| !bytes.is_empty())
        {
            let sink = self.sink.as_ref().ok_or(Errno::PIPE)?;
            match write(sink, bytes) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.pending = Vec::new();
        self.written = 0;
        Ok(())
    }

    /// Reads one chunk and passes it on or keeps it as pending. 0 is the end of the source; an
    /// error means that there is nothing now.
    fn read_chunk(&mut self, chunk: &mut [u8]) -> Result<usize, Errno> {
        let Some(source) = &self.source else {
            return Ok(0);
        };
        let limit = self.rest_bytes.and_then(|rest| usize::try_from(rest).ok());
        let length = limit.unwrap_or(usize::MAX).min(chunk.len());
        let Some(chunk) = chunk.get_mut(..length).filter(|chunk| !chunk.is_empty()) else {
            return Ok(0);
        };
        let count = loop {
            match read(source, &mut *chunk) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if !self.ends_when_empty => return Err(Errno::AGAIN),
                // The end, which a terminal reports as an error; or, after the end of the
                // process, nothing more that anybody waits for.
                Err(_) => break 0,
                Ok(count) => break count,
            }
        };
        let bytes = chunk.get(..count).unwrap_or_default();
        if let Some(last) = bytes.last() {
            self.at_line_start = *last == b'\n';
        }
        if let (Some(rest), Ok(count)) = (&mut self.rest_bytes, u64::try_from(count)) {
            *rest -= count;
        }
        // The common case takes no memory: what the sink accepts at once is never pending.
        let accepted = self
            .sink
            .as_ref()
            .map_or(Ok(0), |sink| write(sink, bytes))
            .unwrap_or(0);
        self.pending
            .extend_from_slice(bytes.get(accepted..).unwrap_or_default());
        Ok(count)
    }

    /// Closes the source at its end. True when that gives the sink something more to be told.
    fn source_ended(&mut self) -> bool {
        let had_source = self.source.take().is_some();
        if had_source && self.sink_is_terminal {
            // In the middle of a line the first one only ends the line.
            let count = if self.at_line_start { 1 } else { 2 };
            self.pending = vec![TERMINAL_EOF; count];
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::pipe::pipe;

    use super::*;

    struct Rig {
        pump: Pump,
        process: std::fs::File,
        host: UnixStream,
        chunk: Vec<u8>,
    }

    /// A pump from a pipe to a socket, with the far ends of both.
    fn rig() -> Rig {
        let (source, process) = pipe().unwrap();
        let (sink, host) = UnixStream::pair().unwrap();
        sink.set_nonblocking(true).unwrap();
        fcntl_setfl(&source, OFlags::NONBLOCK).unwrap();
        let pump = Pump::new(Some(source), sink.into(), Vec::new());
        Rig {
            pump,
            process: process.into(),
            host,
            chunk: vec![0; CHUNK_BYTES],
        }
    }

    fn received(mut host: UnixStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        host.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn everything_up_to_the_end_is_moved() {
        let mut rig = rig();
        rig.process.write_all(b"one ").unwrap();
        assert_eq!(rig.pump.turn(&mut rig.chunk), Progress::Blocked);
        rig.process.write_all(b"two").unwrap();
        drop(rig.process);
        assert_eq!(rig.pump.turn(&mut rig.chunk), Progress::Finished);
        assert_eq!(received(rig.host), b"one two");
    }

    #[test]
    fn after_the_process_what_is_there_is_moved_though_the_pipe_stays_open() {
        let mut rig = rig();
        rig.process.write_all(b"hi\n").unwrap();
        rig.pump.process_ended(false);
        assert_eq!(rig.pump.turn(&mut rig.chunk), Progress::Finished);
        assert_eq!(received(rig.host), b"hi\n");
    }

    #[test]
    fn rest_of_a_terminal_is_waited_for_until_it_is_closed_or_given_up() {
        let mut rig = rig();
        rig.pump.process_ended(true);
        assert_eq!(rig.pump.turn(&mut rig.chunk), Progress::Blocked);
        rig.process.write_all(b"late").unwrap();
        rig.pump.end_when_empty();
        assert_eq!(rig.pump.turn(&mut rig.chunk), Progress::Finished);
        assert_eq!(received(rig.host), b"late");
    }

    #[test]
    fn slow_host_gets_all_of_it_after_the_process() {
        let mut rig = rig();
        let data: Vec<u8> = (0..=u8::MAX).cycle().take(60_000).collect();
        let mut expected = Vec::new();
        while rig.pump.turn(&mut rig.chunk) == Progress::Blocked && rig.pump.pending.is_empty() {
            rig.process.write_all(&data).unwrap();
            expected.extend_from_slice(&data);
        }
        rig.process.write_all(b"end").unwrap();
        expected.extend_from_slice(b"end");
        rig.pump.process_ended(false);
        rig.host.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        while rig.pump.turn(&mut rig.chunk) == Progress::Blocked {
            let mut part = [0; 4096];
            let count = rig.host.read(&mut part).unwrap();
            got.extend_from_slice(&part[..count]);
        }
        rig.host.set_nonblocking(false).unwrap();
        got.extend(received(rig.host));
        assert!(got == expected, "{} of {} bytes", got.len(), expected.len());
    }

    #[test]
    fn host_that_closes_is_noticed_while_the_process_is_silent() {
        let rig = rig();
        assert!(!rig.pump.sink_is_dead());
        rig.host.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!rig.pump.sink_is_dead());
        drop(rig.host);
        assert!(rig.pump.sink_is_dead());
    }

    #[test]
    fn host_that_closes_ends_the_pump() {
        let mut rig = rig();
        drop(rig.host);
        rig.process.write_all(b"x").unwrap();
        assert_eq!(rig.pump.turn(&mut rig.chunk), Progress::SinkLost);
        assert!(rig.process.write_all(b"y").is_err());
    }

    #[test]
    fn end_of_input_on_a_terminal_is_control_d() {
        for (input, expected) in [
            ("ls\n", &b"ls\n\x04"[..]),
            ("ls", b"ls\x04\x04"),
            ("", b"\x04"),
        ] {
            let (source, process) = pipe().unwrap();
            let (sink, host) = UnixStream::pair().unwrap();
            let mut pump = Pump::to_terminal(source, sink.into(), Vec::new());
            std::fs::File::from(process)
                .write_all(input.as_bytes())
                .unwrap();
            assert_eq!(pump.turn(&mut [0; 64]), Progress::Finished);
            assert_eq!(received(host), expected);
        }
    }
}
