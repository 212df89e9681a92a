//! What the agent's calls do to the guest as a whole.

pub mod boot_id;
pub mod clock;
pub mod entropy;
pub mod file_systems;
pub mod hold;
pub mod hooks;
pub mod host_names;
pub mod hotplug;
pub mod hwrng;
pub mod machine_id;
pub mod memory;
pub mod network;
pub mod shutdown;
pub mod uevent;
pub mod vsock;

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::error::Error;
use boot_id::BootId;
use entropy::Generator;
use hold::Held;

/// What the agent lays over files that it cannot change.
const RUN_DIRECTORY: &str = "/run/minivmm";
const RUN_DIRECTORY_MODE: u32 = 0o755;

/// A guest that is the agent's to change.
///
/// Everything that a clone's adoption needs is opened here, once and before a template is made: in
/// a clone every page that is touched for the first time costs a copy or a fault.
#[derive(Debug)]
pub struct Machine {
    /// The kernel's random numbers.
    pub entropy: Generator,
    /// The other processes, while this is a template.
    pub held: Held,
    /// The entropy device, once this has been made ready to be a template.
    hwrng: Option<hwrng::Device>,
    /// The device that the host is reached by.
    pub vsock: vsock::Device,
    /// MemTotal when the agent started, before any memory was added.
    pub boot_memory_bytes: u64,
    /// Its boot id.
    pub boot_id: BootId,
}

impl Machine {
    /// Opens what is needed.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            entropy: Generator::open()?,
            held: Held::default(),
            hwrng: None,
            vsock: vsock::Device::open()?,
            boot_memory_bytes: memory::usage().total_bytes,
            boot_id: BootId::open()?,
        })
    }

    /// Takes what the entropy device's driver has fetched in the template away.
    pub fn discard_stale_entropy(&mut self) -> Result<(), Error> {
        let device = self.hwrng.take().map_or_else(hwrng::Device::find, Ok)?;
        device.discard_stale()
    }

    /// Finds what may have come since: to be done before this is a template.
    pub fn look_ahead(&mut self) -> Result<(), Error> {
        self.hwrng = Some(hwrng::Device::find()?);
        Ok(())
    }
}

/// Makes the directory for what the agent keeps while the guest runs.
pub fn make_run_directory() -> Result<(), Error> {
    make_directory(RUN_DIRECTORY, RUN_DIRECTORY_MODE)
}

fn make_directory(path: &'static str, mode: u32) -> Result<(), Error> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Error::file("create", path)(error))
        }
        _ => Ok(()),
    }
}

/// Writes a text over a file's old one, and truncates the file afterwards, if at all: it is never empty, and
/// keeps its first page, which a clone has already.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    let old_length = file.metadata()?.len();
    file.write_all(text.as_bytes())?;
    match u64::try_from(text.len()) {
        Ok(length) if length < old_length => file.set_len(length),
        _ => Ok(()),
    }
}

fn read_kernel_file(path: &Path) -> Result<String, Error> {
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(text.trim_ascii_end().to_owned())
}
