//! `--disk PATH[,readonly|,temporary]`, and opening what it names.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use vmm::layout::MAX_DISKS;

use crate::error::usage;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// The disks of a machine.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Machine")]
pub struct DiskArgs {
    /// Disk: a raw file or a block device. With ',readonly' behind it the guest cannot write to it, with
    /// ',temporary' what it writes goes with the VM. A template gets a copy of the disk; 'restore' fills the
    /// template's empty slots
    #[arg(long = "disk", value_name = "PATH[,readonly|,temporary]")]
    pub disks: Vec<DiskSpec>,
    /// Empty disk slots for 'restore --disk' to fill [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub disk_slots: Option<u8>,
}

impl DiskArgs {
    /// Checks that a machine can have so many.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self) -> anyhow::Result<()> {
        let disks = self.disks.len();
        let slots = self.disk_slots.unwrap_or(0);
        if disks + usize::from(slots) <= MAX_DISKS.into() {
            return Ok(());
        }
        Err(usage(format!(
            "{disks} disks (--disk) and {slots} empty slots (--disk-slots) are more than the \
             {MAX_DISKS} disks that a machine can have"
        )))
    }
}

/// What becomes of a guest's writes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// They are in the file.
    Write,
    /// There are none.
    ReadOnly,
    /// They are in the VM's directory for as long as it is there.
    Temporary,
}

/// A disk as the user names it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct DiskSpec {
    /// The file.
    pub path: PathBuf,
    /// What becomes of writes.
    pub access: Access,
}

const EXPECTED: &str = "PATH, PATH,readonly or PATH,temporary";

impl FromStr for DiskSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, access) = match text.rsplit_once(',') {
            None => (text, Access::Write),
            Some((path, "readonly")) => (path, Access::ReadOnly),
            Some((path, "temporary")) => (path, Access::Temporary),
            Some((_, option)) => {
                return Err(format!(
                    "{option:?} is not known behind the comma, expected {EXPECTED}"
                ));
            }
        };
        if path.is_empty() {
            return Err(format!("the path is empty, expected {EXPECTED}"));
        }
        Ok(Self {
            path: path.into(),
            access,
        })
    }
}

/// A disk of the user's, locked for as long as it is open: others may read what is only read here,
/// and nobody else may write.
#[derive(Debug)]
pub struct OpenDisk {
    /// The file or device.
    pub file: Arc<File>,
    /// Length in bytes, a multiple of 512.
    pub length: u64,
}

impl DiskSpec {
    /// This file, which keeps what is in it.
    pub fn temporary(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            access: Access::Temporary,
        }
    }

    /// The guest cannot write to it.
    pub fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }

    /// With an absolute path, for a process with another working directory.
    ///
    /// # Errors
    /// The working directory is gone.
    pub fn absolute(self) -> anyhow::Result<Self> {
        let path = std::path::absolute(&self.path)
            .with_context(|| format!("Cannot use {}", self.path.display()))?;
        Ok(Self { path, ..self })
    }

    /// Opens it for a guest.
    ///
    /// # Errors
    /// It is no disk, or another VM has it.
    pub fn open(&self) -> anyhow::Result<OpenDisk> {
        open(&self.path, self.access != Access::Write)
    }

    /// Opens it to be copied.
    ///
    /// # Errors
    /// It is no disk, or a VM writes to it.
    pub fn open_source(&self) -> anyhow::Result<OpenDisk> {
        open(&self.path, true)
    }
}

fn open(path: &Path, read_only: bool) -> anyhow::Result<OpenDisk> {
    let name = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("Disk {name} does not exist; 'truncate -s 1G {name}' makes an empty one")
        }
        Err(error) => return Err(error).with_context(|| format!("Cannot use disk {name}")),
    };
    let kind = meta.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let found = if kind.is_dir() {
            "a directory"
        } else {
            "no regular file"
        };
        bail!("Disk {name} is {found}, expected a raw disk image or a block device");
    }
    // What is in its place by now must not make the open wait.
    let mut file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(|| {
            let hint = "; with ',readonly' behind its path it is only read";
            let hint = if read_only { "" } else { hint };
            format!("Cannot open disk {name}{hint}")
        })?;
    let length = file
        .seek(SeekFrom::End(0))
        .with_context(|| format!("Cannot tell the length of disk {name}"))?;
    if length == 0 || !length.is_multiple_of(SECTOR) {
        bail!("Disk {name} has {length} bytes, expected a multiple of {SECTOR}");
    }
    let lock = if read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    match lock {
        Ok(()) => Ok(OpenDisk {
            file: Arc::new(file),
            length,
        }),
        Err(TryLockError::WouldBlock) if read_only => {
            bail!("Disk {name} is in use by a VM that writes to it; stop that VM first")
        }
        Err(TryLockError::WouldBlock) => bail!(
            "Disk {name} is in use by another VM; stop that first, or give each a copy or \
             ',readonly'"
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("Cannot lock disk {name}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_may_be_followed_by_what_becomes_of_writes() {
        let spec = |text: &str| text.parse::<DiskSpec>();
        let disk = |path: &str, access| DiskSpec {
            path: path.into(),
            access,
        };
        assert_eq!(spec("/d.img"), Ok(disk("/d.img", Access::Write)));
        assert_eq!(
            spec("/d.img,readonly"),
            Ok(disk("/d.img", Access::ReadOnly))
        );
        assert_eq!(spec("/d,temporary"), Ok(disk("/d", Access::Temporary)));
        for (text, part) in [
            ("/d,ro", "\"ro\""),
            (",readonly", "empty"),
            ("", "empty"),
            ("/d,", "\"\""),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let refused = |path: &Path, part: &str| {
            let error = open(path, false).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(part), "{text}");
            assert!(text.contains(path.to_str().unwrap()), "{text}");
        };
        refused(&path, "does not exist");
        refused(dir.path(), "is a directory");
        refused(Path::new("/dev/null"), "no regular file");
        for (length, part) in [
            (0, "0 bytes"),
            (511, "511 bytes"),
            (1025, "multiple of 512"),
        ] {
            std::fs::write(&path, vec![0; length]).unwrap();
            refused(&path, part);
        }
    }

    #[test]
    fn one_writes_or_many_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let writer = open(&path, false).unwrap();
        assert_eq!(writer.length, 512);
        assert!(
            open(&path, false)
                .unwrap_err()
                .to_string()
                .contains("in use")
        );
        assert!(
            open(&path, true)
                .unwrap_err()
                .to_string()
                .contains("in use")
        );
        drop(writer);
        let _readers = (open(&path, true).unwrap(), open(&path, true).unwrap());
        assert!(
            open(&path, false)
                .unwrap_err()
                .to_string()
                .contains("in use")
        );
    }

    #[test]
    fn machine_has_six_disks_at_most() {
        let args = |disks, slots| DiskArgs {
            disks: vec!["/d".parse().unwrap(); disks],
            disk_slots: Some(slots),
        };
        args(2, 4).check().unwrap();
        for args in [args(7, 0), args(6, 1), args(0, 255)] {
            let error = args.check().unwrap_err();
            assert!(error.to_string().contains("--disk-slots"), "{error}");
        }
    }
}
