//! Streams between this host's programs and a guest, through the VM's Unix sockets.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::watch::LIMIT;

/// A stream to a port of the guest.
///
/// # Panics
/// There is none: nobody listens, or nobody answers in time.
#[must_use]
#[track_caller]
pub fn connect(socket: &Path, port: u32) -> UnixStream {
    match try_connect(socket, port) {
        Ok(stream) => stream,
        Err(error) => panic!("no connection to port {port}: {error}"),
    }
}

/// A stream to a port of the guest, when somebody listens there.
///
/// # Errors
/// The stream ended in place of an answer, or something else came.
pub fn try_connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = dial(socket)?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let answer = read_line(&mut stream)?;
    if is_ok(&answer) {
        Ok(stream)
    } else {
        Err(io::Error::other(format!("answer {answer:?}")))
    }
}

/// Whether a line is the answer of an accepted connection: `OK` and the port on the host's side.
#[must_use]
pub fn is_ok(line: &str) -> bool {
    let port = line
        .strip_prefix("OK ")
        .and_then(|line| line.strip_suffix('\n'));
    port.is_some_and(|port| port.parse::<u32>().is_ok())
}

/// A connection to the VM's socket before anything was said. It has a deadline for every call.
///
/// # Errors
/// The VM does not listen.
pub fn dial(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    set_deadlines(&stream)?;
    Ok(stream)
}

/// Reads up to a newline and not a byte more; less when the stream ends.
///
/// # Errors
/// The stream cannot be read.
pub fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stream.read(&mut byte)? == 1 {
        line.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// Where the connections arrive that the guest makes to a port of the host.
#[derive(Debug)]
pub struct HostPort {
    listener: UnixListener,
    path: PathBuf,
}

impl HostPort {
    /// Begins to listen beside the VM's socket.
    ///
    /// # Panics
    /// The socket cannot be made.
    #[must_use]
    #[track_caller]
    pub fn listen(socket: &Path, port: u32) -> Self {
        let path = PathBuf::from(format!("{}_{port}", socket.display()));
        let listener = UnixListener::bind(&path).unwrap();
        Self { listener, path }
    }

    /// The next connection of the guest's.
    ///
    /// # Panics
    /// None comes in time.
    #[must_use]
    #[track_caller]
    pub fn accept(&self) -> UnixStream {
        let limit = Timespec::try_from(LIMIT).unwrap();
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "the guest connects");
        let (stream, _) = self.listener.accept().unwrap();
        set_deadlines(&stream).unwrap();
        stream
    }
}

impl AsFd for HostPort {
    /// Readable when the guest connects.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for HostPort {
    fn drop(&mut self) {
        // Of a VM that is gone the directory is gone, too.
        std::fs::remove_file(&self.path).unwrap_or_default();
    }
}

fn set_deadlines(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))
}
