//! The host's sockets: the one that programs connect to, and those that the guest reaches.

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket, in bytes.
const LONGEST_ADDRESS: usize = 107;
/// Longest suffix of a socket that the guest connects to: `_` and a port.
const LONGEST_SUFFIX: usize = "_4294967295".len();
/// Longest path that the device can listen at, in bytes.
pub const LONGEST_SOCKET_PATH: usize = LONGEST_ADDRESS - LONGEST_SUFFIX;

/// Programs that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the device cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Neither the socket nor those with a port behind the name would be usable.
    #[error(
        "Socket path {path} has {found} bytes, at most {LONGEST_SOCKET_PATH} are possible \
         ({LONGEST_ADDRESS} with the port of a connection from the guest behind it)"
    )]
    PathTooLong {
        /// The path asked for.
        path: PathBuf,
        /// Its length in bytes.
        found: usize,
    },
    /// Somebody else uses the path, or did and was killed.
    #[error("Socket {path} exists already; remove it if no virtual machine uses it")]
    Exists {
        /// The path asked for.
        path: PathBuf,
    },
    /// The operating system refuses.
    #[error("Cannot listen at socket {path}")]
    Listen {
        /// The path asked for.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

/// The listening socket and its file, which goes away with it.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file, to tell it from a later one at the same path.
    file: (u64, u64),
}

impl Listener {
    /// Creates the socket file, for this user only, and listens.
    pub(super) fn bind(path: &Path) -> Result<Self, SocketError> {
        let found = path.as_os_str().len();
        if found > LONGEST_SOCKET_PATH {
            return Err(SocketError::PathTooLong {
                path: path.to_owned(),
                found,
            });
        }
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::Exists {
                path: path.to_owned(),
            },
            _ => SocketError::Listen {
                path: path.to_owned(),
                source,
            },
        };
        let socket = stream_socket().map_err(failed)?;
        // The file takes over the socket's mode, so there is no moment when others can connect.
        let owner_only = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::fchmod(&socket, owner_only).map_err(|error| failed(error.into()))?;
        let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        bind(&socket, &address).map_err(|error| failed(error.into()))?;
        let metadata = path.symlink_metadata().map_err(failed)?;
        let file = (metadata.dev(), metadata.ino());
        let listener = Self {
            socket,
            path: path.to_owned(),
            file,
        };
        listen(&listener.socket, BACKLOG).map_err(|error| failed(error.into()))?;
        Ok(listener)
    }

    /// The next program that waits; the error kind is `WouldBlock` when none does.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(UnixStream::from(accept_with(&self.socket, flags)?))
    }

    /// Connects to the program that serves `port` for the guest.
    ///
    /// A Unix socket connects at once or not at all: with a full backlog the error is `EAGAIN`.
    pub(super) fn connect_port(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path.as_bytes())?;
        let socket = stream_socket()?;
        connect(&socket, &address)?;
        Ok(UnixStream::from(socket))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = |m: std::fs::Metadata| (m.dev(), m.ino()) == self.file;
        if self.path.symlink_metadata().is_ok_and(ours)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "Socket file stays behind");
        }
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    #[test]
    fn socket_file_is_for_its_owner_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn existing_file_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Listener::bind(&path).unwrap();
        let error = Listener::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::Exists { .. }));
        assert!(error.to_string().contains("v.sock exists already"));
        assert!(path.exists());
        drop(first);
    }

    #[test]
    fn socket_of_another_machine_at_the_same_path_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let first = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn longest_path_works_and_one_more_byte_is_refused() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let base = dir.path().as_os_str().len() + 1;
        let path = dir.path().join("p".repeat(LONGEST_SOCKET_PATH - base));
        let listener = Listener::bind(&path).unwrap();
        let longest = format!("{}_{}", path.display(), u32::MAX);
        let _service = UnixListener::bind(longest).unwrap();
        listener.connect_port(u32::MAX).unwrap();

        let error = Listener::bind(&dir.path().join("p".repeat(LONGEST_SOCKET_PATH + 1 - base)));
        let message = error.unwrap_err().to_string();
        assert!(
            message.contains("has 97 bytes, at most 96 are possible"),
            "{message}"
        );
    }

    #[test]
    fn missing_directory_is_named() {
        let error = Listener::bind(Path::new("/nonexistent/v.sock")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Cannot listen at socket /nonexistent/v.sock"
        );
    }

    #[test]
    fn full_backlog_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = Listener::bind(&path).unwrap();
        let service = stream_socket().unwrap();
        let address = dir.path().join("v.sock_9");
        bind(&service, &SocketAddrUnix::new(&address).unwrap()).unwrap();
        listen(&service, 0).unwrap();
        let _waiting = listener.connect_port(9).unwrap();
        assert_eq!(
            listener.connect_port(9).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
