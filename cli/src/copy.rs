//! One direction of one stream: bytes are read when there are some and the last ones are gone.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use rustix::event::PollFlags;
use rustix::fs::OFlags;

/// Bytes taken from a source at once.
const BLOCK: usize = 64 * 1024;
/// What a pipe takes whole, without blocking, once poll(2) says that it is writable.
const PIPE_BUF: usize = 4096;

/// Copies from `source` to `sink`. Neither is ever waited for.
#[derive(Debug)]
pub struct StreamCopy {
    source: Option<File>,
    sink: Option<File>,
    pending: Vec<u8>,
    written: usize,
    largest_write: usize,
    escape: Option<u8>,
    escaped: bool,
}

/// What became of a [`StreamCopy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more.
    Open,
    /// The source has ended and everything has been written.
    Ended,
    /// The sink takes no more.
    Broken,
    /// The escape byte came from the source; what was before it has been written.
    Escaped,
}

impl StreamCopy {
    /// Copies between descriptors. A `sink` that may block gets small pieces.
    ///
    /// # Errors
    /// A descriptor cannot be duplicated.
    pub fn new(source: &impl AsFd, sink: &impl AsFd) -> io::Result<Self> {
        let source: File = source.as_fd().try_clone_to_owned()?.into();
        let sink: File = sink.as_fd().try_clone_to_owned()?.into();
        let sink = nonblocking_pipe(&sink).unwrap_or(sink);
        let nonblocking = rustix::fs::fcntl_getfl(&sink)?.contains(OFlags::NONBLOCK);
        let cannot_block = nonblocking || sink.metadata()?.is_file();
        Ok(Self {
            source: Some(source),
            sink: Some(sink),
            pending: Vec::new(),
            written: 0,
            largest_write: if cannot_block { BLOCK } else { PIPE_BUF },
            escape: None,
            escaped: false,
        })
    }

    /// Makes `byte` end the copy when it comes from the source.
    pub fn end_at(mut self, byte: u8) -> Self {
        self.escape = Some(byte);
        self
    }

    /// What to poll for.
    pub fn poll_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let sink = self.sink.as_ref()?;
        if self.unwritten().is_empty() {
            self.source
                .as_ref()
                .map(|source| (source.as_fd(), PollFlags::IN))
        } else {
            Some((sink.as_fd(), PollFlags::OUT))
        }
    }

    /// Moves what can be moved. To be called when the polled descriptor is ready.
    ///
    /// # Errors
    /// The source or the sink failed.
    pub fn step(&mut self) -> io::Result<Progress> {
        if self.unwritten().is_empty() {
            self.read()?;
        } else {
            self.write()?;
        }
        Ok(self.progress())
    }

    /// Both sides see it closed, unless somebody else has them open.
    fn close(&mut self) {
        self.source = None;
        self.sink = None;
    }

    fn progress(&self) -> Progress {
        if self.sink.is_none() {
            Progress::Broken
        } else if self.source.is_some() || !self.unwritten().is_empty() {
            Progress::Open
        } else if self.escaped {
            Progress::Escaped
        } else {
            Progress::Ended
        }
    }

    fn unwritten(&self) -> &[u8] {
        self.pending.get(self.written..).unwrap_or_default()
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(source) = &mut self.source else {
            return Ok(());
        };
        self.written = 0;
        self.pending.resize(BLOCK, 0);
        let count = match source.read(&mut self.pending) {
            Ok(0) => {
                self.source = None;
                0
            }
            Ok(count) => count,
            Err(error) if is_transient(&error) => 0,
            Err(error) => {
                self.pending.clear();
                return Err(error);
            }
        };
        self.pending.truncate(count);
        if let Some(at) = self
            .escape
            .and_then(|escape| self.pending.iter().position(|&b| b == escape))
        {
            self.pending.truncate(at);
            self.source = None;
            self.escaped = true;
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(sink) = &mut self.sink else {
            return Ok(());
        };
        let rest = self.pending.get(self.written..).unwrap_or_default();
        let piece = rest.get(..self.largest_write).unwrap_or(rest);
        match sink.write(piece) {
            Ok(count) => self.written += count,
            Err(error) if is_transient(&error) => {}
            Err(error) if is_closed(&error) => self.close(),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The same pipe opened once more, in non-blocking mode. To set the mode of the descriptor that was handed to
/// this process would set it for everybody else who has it.
fn nonblocking_pipe(sink: &File) -> Option<File> {
    sink.metadata().ok()?.file_type().is_fifo().then_some(())?;
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
    File::options()
        .write(true)
        .custom_flags(i32::try_from(flags.bits()).ok()?)
        .open(format!("/proc/self/fd/{}", sink.as_raw_fd()))
        .ok()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn run(copy: &mut StreamCopy) -> Progress {
        loop {
            match copy.step().unwrap() {
                Progress::Open => {}
                end => return end,
            }
        }
    }

    #[test]
    fn everything_arrives_before_the_end() {
        let (mut from, source) = UnixStream::pair().unwrap();
        let sink = tempfile::NamedTempFile::new().unwrap();
        let mut copy = StreamCopy::new(&source, sink.as_file()).unwrap();
        let text = "0123456789".repeat(10_000);
        let writer = std::thread::spawn({
            let text = text.clone();
            move || from.write_all(text.as_bytes()).unwrap()
        });
        assert_eq!(run(&mut copy), Progress::Ended);
        writer.join().unwrap();
        assert_eq!(std::fs::read_to_string(sink.path()).unwrap(), text);
    }

    #[test]
    fn a_full_sink_is_not_waited_for() {
        let (mut from, source) = UnixStream::pair().unwrap();
        let (sink, _unread) = UnixStream::pair().unwrap();
        sink.set_nonblocking(true).unwrap();
        from.set_nonblocking(true).unwrap();
        let mut copy = StreamCopy::new(&source, &sink).unwrap();
        for _ in 0..100 {
            if let Err(error) = from.write(&[b'x'; 65_536]) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
            }
            source.set_nonblocking(true).unwrap();
            assert_eq!(copy.step().unwrap(), Progress::Open);
        }
        assert!(matches!(copy.poll_for(), Some((_, PollFlags::OUT))));
    }

    #[test]
    fn a_full_pipe_is_not_waited_for_and_stays_as_it_is_for_others() {
        let (mut from, source) = UnixStream::pair().unwrap();
        let (mut reader, sink) = io::pipe().unwrap();
        let mut copy = StreamCopy::new(&source, &sink).unwrap();
        let sent = vec![b'x'; 3 * BLOCK];
        let to_send = sent.clone();
        let writer = std::thread::spawn(move || from.write_all(&to_send).unwrap());
        let capacity = rustix::pipe::fcntl_getpipe_size(&sink).unwrap();
        // Polled as its users do, until the pipe takes no more.
        loop {
            let (descriptor, flags) = copy.poll_for().unwrap();
            let waits_for_sink = flags == PollFlags::OUT;
            let mut polled = [rustix::event::PollFd::from_borrowed_fd(descriptor, flags)];
            let limit = rustix::event::Timespec {
                tv_sec: i64::from(!waits_for_sink),
                tv_nsec: 0,
            };
            if rustix::event::poll(&mut polled, Some(&limit)).unwrap() == 0 {
                assert!(waits_for_sink, "the source gives nothing");
                break;
            }
            assert_eq!(copy.step().unwrap(), Progress::Open);
        }
        assert_eq!(
            rustix::io::ioctl_fionread(&reader).unwrap(),
            capacity as u64
        );
        let mode = rustix::fs::fcntl_getfl(&sink).unwrap();
        assert!(!mode.contains(OFlags::NONBLOCK));

        drop(sink);
        let received = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        while copy.step().unwrap() == Progress::Open {}
        drop(copy);
        assert_eq!(received.join().unwrap(), sent);
        writer.join().unwrap();
    }

    #[test]
    fn the_escape_byte_ends_the_copy_after_what_was_before_it() {
        let (mut from, source) = UnixStream::pair().unwrap();
        let (sink, mut to) = UnixStream::pair().unwrap();
        let mut copy = StreamCopy::new(&source, &sink).unwrap().end_at(0x1d);
        from.write_all(b"before\x1dafter").unwrap();
        assert_eq!(run(&mut copy), Progress::Escaped);
        drop((copy, sink));
        let mut text = String::new();
        to.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before");
    }

    #[test]
    fn a_sink_that_goes_away_breaks_the_copy() {
        let (mut from, source) = UnixStream::pair().unwrap();
        let (sink, reader) = UnixStream::pair().unwrap();
        let mut copy = StreamCopy::new(&source, &sink).unwrap();
        drop(reader);
        from.write_all(b"x").unwrap();
        assert_eq!(run(&mut copy), Progress::Broken);
        assert!(copy.poll_for().is_none());
    }
}
