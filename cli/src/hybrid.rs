//! Connects to a guest's vsock port through the VM's Unix socket, with Firecracker's handshake:
//! `CONNECT <port>`, `OK <port>`, then the stream.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::poll::until;

/// The longest answer, newline included: `OK 4294967295`.
const MAX_ANSWER_BYTES: usize = 32;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The VM's socket cannot be connected to.
    #[error("Cannot connect to {}", socket.display())]
    Socket {
        /// The VM's socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The guest refused.
    #[error("Nothing listens on the guest's vsock port {port}")]
    Refused {
        /// The guest's port.
        port: u32,
    },
    /// Neither accepted nor refused.
    #[error("Guest did not take the connection to vsock port {port} within {} ms", timeout.as_millis())]
    Timeout {
        /// The guest's port.
        port: u32,
        /// How long it was given.
        timeout: Duration,
    },
    /// Something else than the handshake.
    #[error("Expected 'OK <port>' from {}, got {found:?}", socket.display())]
    Answer {
        /// The VM's socket.
        socket: PathBuf,
        /// The answer.
        found: String,
    },
    /// The handshake failed.
    #[error("Cannot shake hands at {}", socket.display())]
    Io {
        /// The VM's socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A stream to the guest's vsock `port` of the VM that listens at `socket`.
///
/// # Errors
/// See [`ConnectError`].
pub fn connect(socket: &Path, port: u32, timeout: Duration) -> Result<UnixStream, ConnectError> {
    let stream = UnixStream::connect(socket).map_err(|source| ConnectError::Socket {
        socket: socket.to_owned(),
        source,
    })?;
    match shake_hands(&stream, port, timeout) {
        Ok(answer) if answer.starts_with(b"OK ") => Ok(stream),
        Ok(answer) => Err(ConnectError::Answer {
            socket: socket.to_owned(),
            found: String::from_utf8_lossy(&answer).into_owned(),
        }),
        Err(error) => Err(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => ConnectError::Timeout { port, timeout },
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                ConnectError::Refused { port }
            }
            _ => ConnectError::Io {
                socket: socket.to_owned(),
                source: error,
            },
        }),
    }
}

fn shake_hands(mut stream: &UnixStream, port: u32, timeout: Duration) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let line = read_line(stream, timeout, MAX_ANSWER_BYTES)?;
    stream.set_write_timeout(None)?;
    Ok(line)
}

/// Reads up to a newline and not a byte more. The whole line has to come in `timeout`.
///
/// # Errors
/// The end of the stream, the time-out, or more than `limit` bytes.
pub fn read_line(mut stream: &UnixStream, timeout: Duration, limit: usize) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() >= limit {
            return Err(ErrorKind::InvalidData.into());
        }
        let left = until(deadline);
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => line.extend(byte),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.set_read_timeout(None)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const SOON: Duration = Duration::from_millis(50);

    /// Connects to a VM that answers `answer`, and keeps the connection open if `stay`.
    fn connect_to(answer: &'static [u8], stay: bool) -> Result<UnixStream, ConnectError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let vm = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let asked = read_line(&stream, Duration::from_secs(5), 64).unwrap();
            assert_eq!(asked, b"CONNECT 1024\n");
            stream.write_all(answer).unwrap();
            stay.then_some(stream)
        });
        let result = connect(&socket, 1024, SOON);
        drop(vm.join());
        result
    }

    #[test]
    fn the_stream_begins_right_after_the_answer() {
        let mut stream = connect_to(b"OK 1024\nhello", true).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "hello");
    }

    #[test]
    fn a_closed_connection_means_that_nobody_listens() {
        assert!(matches!(
            connect_to(b"", false),
            Err(ConnectError::Refused { port: 1024 })
        ));
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vsock.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error = connect(&socket, 1024, SOON).unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }), "{error}");
    }

    #[test]
    fn another_answer_is_shown() {
        let error = connect_to(b"HTTP/1.1 400\n", true).unwrap_err().to_string();
        assert!(error.contains("HTTP/1.1 400"), "{error}");
    }

    #[test]
    fn a_missing_socket_is_named() {
        let error = connect(Path::new("/nonexistent/v"), 1, SOON)
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/v"), "{error}");
    }
}
