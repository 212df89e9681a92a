//! Where the agent is reached.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use proto::{AGENT_PORT, FORWARD_PORT, STDIO_PORT};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use crate::error::Error;
use crate::machine::vsock;

/// The listening sockets, which do not block.
#[derive(Debug)]
pub struct Listeners {
    /// For ttrpc.
    pub calls: OwnedFd,
    /// For the streams of commands.
    pub stdio: OwnedFd,
    /// For streams to programs of the guest's own.
    pub forward: OwnedFd,
    /// Given up for a moment when no descriptor is left, so that a peer can be turned away instead
    /// of being reported as waiting for ever.
    reserve: Option<OwnedFd>,
}

impl Listeners {
    /// Listens on the vsock ports.
    pub fn vsock() -> Result<Self, Error> {
        let [calls, stdio, forward] = [AGENT_PORT, STDIO_PORT, FORWARD_PORT].map(vsock::listener);
        Self::new(calls?, stdio?, forward?)
    }

    /// Listens on the Unix sockets `path`, `path.stdio` and `path.forward`.
    pub fn unix(path: &Path) -> Result<Self, Error> {
        let [calls, stdio, forward] = ["", ".stdio", ".forward"].map(|suffix| {
            let mut path = OsString::from(path);
            path.push(suffix);
            unix_listener(PathBuf::from(path))
        });
        Self::new(calls?, stdio?, forward?)
    }

    fn new(calls: OwnedFd, stdio: OwnedFd, forward: OwnedFd) -> Result<Self, Error> {
        let reserve = Some(another_descriptor(&calls)?);
        Ok(Self {
            calls,
            stdio,
            forward,
            reserve,
        })
    }

    /// The next waiting ttrpc connection.
    pub fn accept_call(&mut self) -> Result<Option<OwnedFd>, Error> {
        accept(&self.calls, &mut self.reserve)
    }

    /// The next waiting connection for a stream.
    pub fn accept_stdio(&mut self) -> Result<Option<OwnedFd>, Error> {
        accept(&self.stdio, &mut self.reserve)
    }

    /// The next waiting connection for a program of the guest's own.
    pub fn accept_forward(&mut self) -> Result<Option<OwnedFd>, Error> {
        accept(&self.forward, &mut self.reserve)
    }
}

fn another_descriptor(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    fd.try_clone()
        .map_err(Error::system("reserve a descriptor"))
}

fn unix_listener(path: impl Into<PathBuf>) -> Result<OwnedFd, Error> {
    let path = path.into();
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::file("replace", path)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(Error::file("listen on", path))?;
    listener
        .set_nonblocking(true)
        .map_err(Error::system("set a socket to non-blocking"))?;
    Ok(listener.into())
}

fn accept(listener: &OwnedFd, reserve: &mut Option<OwnedFd>) -> Result<Option<OwnedFd>, Error> {
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(connection) => Ok(Some(connection)),
        Err(Errno::MFILE | Errno::NFILE) => {
            *reserve = None;
            // Closed at once; there is nothing to be done if it has gone by itself.
            drop(accept_with(listener, SocketFlags::CLOEXEC));
            *reserve = another_descriptor(listener).ok();
            Ok(None)
        }
        // Nobody there any more, or the peer gave up before we came.
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(Error::system("accept a connection")(errno)),
    }
}
