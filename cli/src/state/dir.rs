//! The paths of one VM.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use vmm::layout::MAX_DISKS;

use super::files::remove_if_there;
use crate::error::usage;
use crate::id::VmId;

/// What `sun_path` holds besides its terminating NUL, in bytes.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The longest name of a socket in a VM's directory: a guest's connection to the last port.
const LONGEST_SOCKET: &str = "vsock.sock_4294967295";

/// A VM's directory below the state directory.
#[derive(Clone, Debug)]
pub struct VmDir {
    path: PathBuf,
    id: VmId,
}

impl VmDir {
    pub(super) fn new(path: PathBuf, id: VmId) -> Self {
        Self { path, id }
    }

    /// The VM's id, which is also the directory's name.
    pub fn id(&self) -> &VmId {
        &self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Something is there.
    pub fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// What the VM is and how it ended.
    pub fn record(&self) -> PathBuf {
        self.path.join("vm.json")
    }

    /// Locked by the VM's process for as long as it lives.
    pub fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// Takes control requests.
    pub fn control_socket(&self) -> PathBuf {
        self.path.join("ctl.sock")
    }

    /// Leads to the guest's vsock ports.
    pub fn vsock_socket(&self) -> PathBuf {
        self.path.join("vsock.sock")
    }

    /// Where the guest's connection to the host's `port` arrives.
    pub fn vsock_listener(&self, port: u32) -> PathBuf {
        self.path.join(format!("vsock.sock_{port}"))
    }

    /// The serial console, both ways.
    pub fn console_socket(&self) -> PathBuf {
        self.path.join("console.sock")
    }

    /// What the guest has printed on its console.
    pub fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// What it printed before that.
    pub fn console_log_before(&self) -> PathBuf {
        self.path.join("console.log.1")
    }

    /// The VM process's own log.
    pub fn vmm_log(&self) -> PathBuf {
        self.path.join("vmm.log")
    }

    /// The overlay of a disk: what the VM has written to it.
    pub fn disk(&self, number: usize) -> PathBuf {
        self.path.join(format!("disk-{number}"))
    }

    /// Removes the sockets and the overlays of a VM that has ended. They may be gone already.
    ///
    /// # Errors
    /// One of them cannot be removed.
    pub fn tidy(&self) -> anyhow::Result<()> {
        let sockets = [
            self.control_socket(),
            self.vsock_socket(),
            self.console_socket(),
        ];
        let overlays = (0..MAX_DISKS.into()).map(|number| self.disk(number));
        for path in sockets.into_iter().chain(overlays) {
            remove_if_there(&path)?;
        }
        Ok(())
    }

    /// Refuses a directory whose sockets could not be connected to.
    ///
    /// # Errors
    /// The longest socket path is too long for the kernel.
    pub fn check_socket_paths(&self) -> anyhow::Result<()> {
        check_socket_path(&self.path.join(LONGEST_SOCKET), "--state-dir or --id")
    }
}

/// Refuses a socket that could not be connected to; `options` make its path shorter.
///
/// # Errors
/// The path is too long for the kernel.
pub fn check_socket_path(socket: &Path, options: &str) -> anyhow::Result<()> {
    let length = socket.as_os_str().as_bytes().len();
    if length <= MAX_SOCKET_PATH_BYTES {
        return Ok(());
    }
    Err(usage(format!(
        "The socket path {} has {length} bytes, the kernel allows {MAX_SOCKET_PATH_BYTES}; \
         choose a shorter {options}",
        socket.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with_longest_socket_of(length: usize) -> VmDir {
        let fixed = "/".len() + "/".len() + LONGEST_SOCKET.len();
        let path = PathBuf::from(format!("/{}", "d".repeat(length - fixed)));
        VmDir::new(path, "x".parse().unwrap())
    }

    #[test]
    fn socket_paths_up_to_the_limit_are_accepted() {
        for length in [100, 106, 107] {
            dir_with_longest_socket_of(length)
                .check_socket_paths()
                .unwrap();
        }
    }

    #[test]
    fn longer_socket_paths_are_refused_with_limit_and_option() {
        for length in [108, 200] {
            let error = dir_with_longest_socket_of(length)
                .check_socket_paths()
                .unwrap_err();
            let text = error.to_string();
            for part in [&format!("{length} bytes"), "107", "--state-dir", "--id"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            assert_eq!(crate::error::exit_code(&error), crate::error::USAGE);
        }
    }
}
