//! Sockets that only their owner can connect to.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long nobody is accepted when there is no descriptor for a caller: the listener stays ready
/// meanwhile, and a poll loop that waits for it would spin.
const SHORT_OF_DESCRIPTORS: Duration = Duration::from_millis(200);

/// Listens at `path` without ever blocking.
///
/// # Errors
/// The socket cannot be made.
pub fn private(path: &Path) -> anyhow::Result<UnixListener> {
    let listen = || {
        // The directory lets nobody else in, so there is no moment at which another could connect.
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true).map(|()| listener)
    };
    listen().with_context(|| format!("Cannot listen at {}", path.display()))
}

/// A listener in a poll loop.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    /// Nobody is accepted until then.
    again_at: Option<Instant>,
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn private(path: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            socket: private(path)?,
            again_at: None,
        })
    }

    /// What to poll for reading; nothing while descriptors are short.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.again_at.is_none().then(|| self.socket.as_fd())
    }

    /// When [`Self::accept`] is to be called though nothing is ready.
    pub fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// The next caller, who is never waited for. Callers stay in the queue while there is no
    /// descriptor for them.
    pub fn accept(&mut self) -> Option<UnixStream> {
        if self.again_at.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        loop {
            let accepted = self.socket.accept();
            match accepted.and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream)) {
                Ok(stream) => {
                    self.again_at = None;
                    return Some(stream);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.again_at = None;
                    return None;
                }
                Err(error) => {
                    // Once for each shortage, not for each try.
                    if self.again_at.is_none() {
                        tracing::warn!(%error, "Cannot accept a client, trying again");
                    }
                    self.again_at = Some(Instant::now() + SHORT_OF_DESCRIPTORS);
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = private(&path).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(
            private(&path)
                .unwrap_err()
                .to_string()
                .contains("Cannot listen at")
        );
    }

    #[test]
    fn callers_come_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut listener = Listener::private(&path).unwrap();
        assert!(listener.accept().is_none());
        let _callers = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
        assert!(listener.accept().is_some());
        assert!(listener.accept().is_some());
        assert!(listener.accept().is_none());
        assert!(listener.fd().is_some());
        assert_eq!(listener.again_at(), None);
    }
}
