//! What can go wrong in the agent, and how a caller is told.

use std::io;
use std::path::PathBuf;

use ttrpc::Code;

/// A failure of the agent itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call on something that has no path.
    #[error("Cannot {action}: {source}")]
    System {
        /// What was tried, as it follows "cannot".
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A file or directory could not be used.
    #[error("Cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file of the kernel holds something that is not understood.
    #[error("{} holds {found:?}, expected {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is in it.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// The command line is wrong.
    #[error("{0}; usage: minivmm-agent [--listen unix:PATH]")]
    Usage(String),
    /// The guest has no working vsock device.
    #[error(
        "No vsock device after {0} s: is one configured, and are virtio_mmio and \
         vmw_vsock_virtio_transport built in or listed in /etc/minivmm/modules?"
    )]
    NoVsock(u64),
    /// The disk of the root file system does not appear.
    #[error(
        "There is no disk {} after {seconds} s (minivmm.root=): does the VM have it, and are virtio_blk \
         and its file system built in or listed in /etc/minivmm/modules?",
        device.display()
    )]
    NoRootDisk {
        /// What was waited for.
        device: PathBuf,
        /// How long.
        seconds: u64,
    },
    /// The guest has no network device, or no driver for it.
    #[error(
        "The guest has no virtio network interface: is virtio_net built in or listed in \
         /etc/minivmm/modules?"
    )]
    NoNetwork,
}

impl Error {
    /// Wraps the failure of `action` on `path`; for `map_err`.
    pub fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::File {
            action,
            path,
            source: source.into(),
        }
    }

    /// Wraps the failure of `action`; for `map_err`.
    pub fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }
}

/// Why a call is not answered: the status that the caller gets.
#[derive(Debug)]
pub struct Refusal {
    /// What kind of refusal.
    pub code: Code,
    /// What the caller is told.
    pub message: String,
}

impl Refusal {
    /// Refuses with `code` and words.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new(Code::INTERNAL, error.to_string())
    }
}
