//! Programs on the host that talk to the guest through its socket device.

use crate::machine::must;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The port of the host at which a program waits for the guest.
pub const SERVICE_PORT: u32 = 99;
/// The most that is written or read at once.
const BLOCK: usize = 64 * 1024;

/// The socket of a machine and the streams of the programs that use it.
#[derive(Debug)]
pub struct Host {
    directory: tempfile::TempDir,
    socket: PathBuf,
    service: UnixListener,
    streams: Vec<UnixStream>,
}

impl Host {
    /// A host with a service and without streams.
    pub fn start() -> Self {
        // Memory, where there is: the directory lives for a moment.
        let parent = Path::new("/dev/shm");
        let directory = must(if parent.is_dir() {
            tempfile::tempdir_in(parent)
        } else {
            tempfile::tempdir()
        });
        let socket = directory.path().join("v");
        let service = must(UnixListener::bind(
            directory.path().join(format!("v_{SERVICE_PORT}")),
        ));
        must(service.set_nonblocking(true));
        Self {
            directory,
            socket,
            service,
            streams: Vec::new(),
        }
    }

    /// Where the device listens.
    pub fn socket(&self) -> &Path {
        debug_assert!(self.directory.path().is_dir());
        &self.socket
    }

    /// Connects and says something.
    pub fn say(&mut self, text: &[u8]) {
        let Ok(mut stream) = UnixStream::connect(&self.socket) else {
            return;
        };
        must(stream.set_nonblocking(true));
        if stream.write(text).is_ok() {
            self.streams.push(stream);
        }
    }

    /// Takes over a stream from inside the process.
    pub fn keep(&mut self, stream: UnixStream) {
        must(stream.set_nonblocking(true));
        self.streams.push(stream);
    }

    /// The service takes one connection.
    pub fn accept(&mut self) {
        if let Ok((stream, _)) = self.service.accept() {
            self.keep(stream);
        }
    }

    /// A program writes as much as there is room for.
    pub fn write(&mut self, stream: u8, length: u16) {
        if let Some(stream) = self.stream(stream) {
            // A peer that is gone is no fault.
            drop(stream.write(&[0x5a; BLOCK][..usize::from(length)]));
        }
    }

    /// A program writes these bytes.
    pub fn write_bytes(&mut self, stream: u8, bytes: &[u8]) {
        if let Some(stream) = self.stream(stream) {
            drop(stream.write(bytes));
        }
    }

    /// A program reads what there is.
    pub fn read(&mut self, stream: u8, length: u16) {
        if let Some(stream) = self.stream(stream) {
            drop(stream.read(&mut [0; BLOCK][..usize::from(length)]));
        }
    }

    /// A program ends one or both directions.
    pub fn shut(&mut self, stream: u8, how: u8) {
        let how = match how % 3 {
            0 => Shutdown::Read,
            1 => Shutdown::Write,
            _ => Shutdown::Both,
        };
        if let Some(stream) = self.stream(stream) {
            drop(stream.shutdown(how));
        }
    }

    /// A program goes away.
    pub fn close(&mut self, stream: u8) {
        if let Some(index) = self.index(stream) {
            drop(self.streams.remove(index));
        }
    }

    fn stream(&mut self, number: u8) -> Option<&mut UnixStream> {
        let index = self.index(number)?;
        self.streams.get_mut(index)
    }

    fn index(&self, number: u8) -> Option<usize> {
        usize::from(number).checked_rem(self.streams.len())
    }
}
