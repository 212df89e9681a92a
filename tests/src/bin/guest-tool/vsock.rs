//! Streams between guest and host.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use minivmm_tests::pattern::Pattern;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen as start_listening, socket,
};

use crate::{Error, service};

const HOST_CID: u32 = 2;
const ANY_CID: u32 = u32::MAX;
const BACKLOG: i32 = 256;
/// Between two tries to reach the host.
const TRY_AGAIN: Duration = Duration::from_millis(20);
const BUFFER_BYTES: usize = 64 << 10;

/// What one side does with a connection. Patterns have the port as their seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Sends back what comes, up to the end. The connecting side sends so many bytes and expects
    /// them back.
    Echo(u64),
    /// Takes what comes and forgets it, up to the end.
    Discard,
    /// Sends so many bytes of the pattern, ends its half, and waits for the other end's.
    Source(u64),
    /// Expects so many bytes of the pattern and the end, and answers `ok` or what is wrong.
    Sink(u64),
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        let (name, bytes) = word.split_once(':').unwrap_or((word, "0"));
        let bytes = crate::number(bytes)?;
        match name {
            "echo" => Ok(Self::Echo(bytes)),
            "discard" => Ok(Self::Discard),
            "source" => Ok(Self::Source(bytes)),
            "sink" => Ok(Self::Sink(bytes)),
            _ => Err(format!("{word:?}: expected echo, discard, source or sink").into()),
        }
    }
}

/// A connected stream.
#[derive(Debug)]
struct Stream(File);

impl Stream {
    fn to_host(port: u32) -> nix::Result<Self> {
        let socket = new_socket()?;
        nix::sys::socket::connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, port))?;
        Ok(Self(File::from(socket)))
    }

    /// To a host that may not be ready yet.
    fn to_host_patiently(port: u32) -> Self {
        loop {
            match Self::to_host(port) {
                Ok(stream) => return stream,
                Err(_) => thread::sleep(TRY_AGAIN),
            }
        }
    }

    fn shut_down(&self, how: Shutdown) -> Result<(), Error> {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        Ok(rustix::net::shutdown(&self.0, how)?)
    }
}

/// Job: serves everybody who connects to `port`, each in a thread.
pub fn listen(port: u32, mode: Mode) -> Result<(), Error> {
    let socket = new_socket()?;
    bind(socket.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
    start_listening(&socket, Backlog::new(BACKLOG)?)?;
    service::report_ready()?;
    loop {
        // A connection that was reset before it was accepted is no reason to end.
        let Ok(stream) = rustix::net::accept(&socket) else {
            continue;
        };
        thread::spawn(move || {
            // How a connection ends is for its other end to judge.
            serve(&Stream(File::from(stream)), port, mode).unwrap_or_default();
        });
    }
}

fn serve(stream: &Stream, port: u32, mode: Mode) -> Result<(), Error> {
    let pattern = Pattern::new(port.into());
    match mode {
        Mode::Echo(_) => copy(&stream.0, &stream.0).map(drop)?,
        Mode::Discard => copy(&stream.0, std::io::sink()).map(drop)?,
        Mode::Source(bytes) => pattern.send(&stream.0, bytes)?,
        Mode::Sink(bytes) => {
            let verdict = match pattern.receive(&stream.0, bytes) {
                Ok(()) => end_of(&stream.0),
                Err(error) => error.to_string(),
            };
            (&stream.0).write_all(verdict.as_bytes())?;
        }
    }
    stream.shut_down(Shutdown::Write)?;
    // What the other end still has to say.
    copy(&stream.0, std::io::sink())?;
    Ok(())
}

/// Connects to the host, which is the other side of the mode, and prints `ok` when all was right.
pub fn connect(port: u32, mode: Mode) -> Result<(), Error> {
    let stream = Stream::to_host(port)?;
    let pattern = Pattern::new(port.into());
    let verdict = match mode {
        Mode::Echo(bytes) => thread::scope(|scope| -> Result<String, Error> {
            let sender = scope.spawn(|| pattern.send(&stream.0, bytes));
            pattern.receive(&stream.0, bytes)?;
            sender.join().map_err(|_| "the sender has panicked")??;
            stream.shut_down(Shutdown::Write)?;
            Ok(end_of(&stream.0))
        })?,
        Mode::Source(bytes) => {
            pattern.send(&stream.0, bytes)?;
            stream.shut_down(Shutdown::Write)?;
            // The response comes after our half has ended.
            let mut answer = String::new();
            (&stream.0).read_to_string(&mut answer)?;
            answer
        }
        Mode::Sink(bytes) => {
            pattern.receive(&stream.0, bytes)?;
            let verdict = end_of(&stream.0);
            (&stream.0).write_all(verdict.as_bytes())?;
            verdict
        }
        Mode::Discard => return Err("expected echo, source or sink".into()),
    };
    println!("{verdict}");
    Ok(())
}

/// Prints how connecting ends.
pub fn probe(port: u32) -> Result<(), Error> {
    match Stream::to_host(port) {
        Ok(_) => println!("connected"),
        Err(errno) => println!("{errno:?}"),
    }
    Ok(())
}

/// Job: reads from a connection until it ends, and keeps how it ended in a file.
pub fn hold(port: u32, file: &str) -> Result<(), Error> {
    let stream = Stream::to_host_patiently(port);
    (&stream.0).write_all(b"hello\n")?;
    service::report_ready()?;
    service::publish(file, &end_of(&stream.0))
}

/// Job: writes to a connection until that fails, and keeps in a file how.
pub fn stream(port: u32, file: &str) -> Result<(), Error> {
    let stream = Stream::to_host_patiently(port);
    service::report_ready()?;
    let pattern = Pattern::new(port.into());
    let end = match pattern.send(&stream.0, u64::MAX) {
        Ok(()) => "ok".to_owned(),
        Err(error) => error.kind().to_string(),
    };
    service::publish(file, &end)
}

/// `ok` when the stream ends next, otherwise what happened.
fn end_of(mut stream: &File) -> String {
    loop {
        match stream.read(&mut [0; 16]) {
            Ok(0) => return "ok".to_owned(),
            Ok(count) => return format!("{count} bytes more than expected"),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind().to_string(),
        }
    }
}

fn copy(mut from: &File, mut to: impl Write) -> Result<u64, Error> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut copied = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(copied),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        to.write_all(&buffer[..count])?;
        copied += count as u64;
    }
}

fn new_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Vsock, SockType::Stream, flags, None)
}
