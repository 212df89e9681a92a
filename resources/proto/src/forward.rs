//! The line that opens a stream to a program in the guest on [`FORWARD_PORT`](crate::FORWARD_PORT).
//!
//! It is answered as the line of a command's stream is, see [`stdio`](crate::stdio).

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

/// The longest path of a Unix socket, in bytes.
pub const MAX_PATH_BYTES: usize = 107;

/// Where in the guest the stream is to lead. Displays as the line without its newline.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// A TCP port on 127.0.0.1.
    Tcp(NonZeroU16),
    /// A Unix socket, by its absolute path.
    Unix(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp {port}"),
            Self::Unix(path) => write!(f, "unix {path}"),
        }
    }
}

/// A line that is not `tcp PORT` or `unix PATH`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("expected 'tcp <port>' or 'unix </path of at most {MAX_PATH_BYTES} bytes>', got {0:?}")]
pub struct BadTarget(String);

impl FromStr for Target {
    type Err = BadTarget;

    fn from_str(line: &str) -> Result<Self, BadTarget> {
        let target = match line.split_once(' ') {
            Some(("tcp", port)) => port.parse().ok().map(Self::Tcp),
            Some(("unix", path)) => Self::unix(path),
            _ => None,
        };
        target.ok_or_else(|| BadTarget(line.to_owned()))
    }
}

impl Target {
    /// A Unix socket, if its path can be one's.
    pub fn unix(path: &str) -> Option<Self> {
        let usable = path.starts_with('/')
            && path.len() <= MAX_PATH_BYTES
            && !path.contains(char::is_control);
        usable.then(|| Self::Unix(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_round_trip() {
        for line in ["tcp 1", "tcp 65535", "unix /run/a b.sock"] {
            assert_eq!(line.parse::<Target>().unwrap().to_string(), line);
        }
    }

    #[test]
    fn wrong_lines_are_named() {
        let long = format!("unix /{}", "p".repeat(MAX_PATH_BYTES));
        for line in [
            "",
            "tcp",
            "tcp 0",
            "tcp 65536",
            "tcp x",
            "udp 1",
            "unix run",
            "unix /a\0",
            &long,
        ] {
            let error = line.parse::<Target>().unwrap_err();
            assert!(error.to_string().contains(&format!("{line:?}")), "{error}");
        }
    }
}
