//! The root file system on a disk: it takes the place of the initramfs, which goes away.

use std::fs::{self, DirEntry};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, unmount};

use crate::error::Error;
use crate::machine::uevent::Uevents;
use crate::say;

/// `minivmm.root=/dev/vda`, or with `,ro` behind it.
const PARAMETER: &str = "minivmm.root=";
const READ_ONLY: &str = ",ro";
/// How long the disk may take to appear after its driver is loaded.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// Where it is mounted until it is the root.
const MOUNT_POINT: &str = "/minivmm-root";
/// What is mounted already, and stays so.
const MOVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run"];
/// The disk has its own.
const LEFT: &str = "/tmp";
const FILE_SYSTEMS: &str = "/proc/filesystems";

/// `RAMFS_MAGIC` and `TMPFS_MAGIC` of include/uapi/linux/magic.h.
const IN_MEMORY: [u64; 2] = [0x8584_58f6, 0x0102_1994];

/// The disk of the kernel command line.
#[derive(Debug, PartialEq, Eq)]
struct RootDisk {
    device: PathBuf,
    read_only: bool,
}

/// Makes the disk that the command line names the root; without one the initramfs stays it.
pub fn enter(command_line: &str, uevents: &mut Uevents) -> Result<(), Error> {
    let Some(disk) = RootDisk::parse(command_line) else {
        return Ok(());
    };
    disk.wait_for(uevents)?;
    disk.mount()?;
    unmount(LEFT, UnmountFlags::empty()).map_err(Error::file("unmount", LEFT))?;
    for path in MOVED {
        let target = format!("{MOUNT_POINT}{path}");
        fs::create_dir_all(&target).map_err(Error::file("create", &target))?;
        mount_move(path, &target).map_err(Error::file("move the mount", path))?;
    }
    free_initramfs();
    std::env::set_current_dir(MOUNT_POINT).map_err(Error::file("enter", MOUNT_POINT))?;
    mount_move(".", "/").map_err(Error::file("make the root", MOUNT_POINT))?;
    rustix::process::chroot(".").map_err(Error::file("enter", MOUNT_POINT))?;
    std::env::set_current_dir("/").map_err(Error::file("enter", "/"))
}

impl RootDisk {
    fn parse(command_line: &str) -> Option<Self> {
        let words = command_line.split_ascii_whitespace();
        let value = words.rev().find_map(|word| word.strip_prefix(PARAMETER))?;
        let (device, read_only) = match value.strip_suffix(READ_ONLY) {
            Some(device) => (device, true),
            None => (value, false),
        };
        Some(Self {
            device: device.into(),
            read_only,
        })
    }

    fn wait_for(&self, uevents: &mut Uevents) -> Result<(), Error> {
        let is_there =
            || fs::metadata(&self.device).is_ok_and(|meta| meta.file_type().is_block_device());
        if uevents.wait_until(DISK_TIMEOUT, is_there)? {
            return Ok(());
        }
        Err(Error::NoRootDisk {
            device: self.device.clone(),
            seconds: DISK_TIMEOUT.as_secs(),
        })
    }

    /// Tries the file systems that the kernel knows, as mount(8) does without a type.
    fn mount(&self) -> Result<(), Error> {
        fs::create_dir_all(MOUNT_POINT).map_err(Error::file("create", MOUNT_POINT))?;
        let flags = if self.read_only {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        let known = fs::read_to_string(FILE_SYSTEMS).map_err(Error::file("read", FILE_SYSTEMS))?;
        let mut last = Errno::NODEV;
        for kind in on_disks(&known) {
            match mount(&self.device, MOUNT_POINT, kind, flags, None) {
                Ok(()) => return Ok(()),
                // It is of another kind.
                Err(Errno::INVAL) => {}
                Err(errno) => last = errno,
            }
        }
        Err(Error::file("mount the root file system on", &self.device)(
            last,
        ))
    }
}

/// The kinds in the kernel's list that are on block devices.
fn on_disks(known: &str) -> impl Iterator<Item = &str> {
    let kinds = known.lines().filter(|line| !line.starts_with("nodev"));
    kinds.map(str::trim).filter(|kind| !kind.is_empty())
}

/// Nobody can reach what is in the initramfs any more; its memory is the guest's. What cannot be
/// removed only takes room.
fn free_initramfs() {
    let root = Path::new("/");
    let is_in_memory = |found: u64| IN_MEMORY.contains(&found);
    let kind = statfs(root).map(|root| root.f_type.cast_unsigned());
    let device = fs::metadata(root).map(|root| root.dev());
    match (kind, device) {
        (Ok(kind), Ok(device)) if is_in_memory(kind) => remove_below(root, device),
        _ => say("The root is no initramfs, it stays as it is"),
    }
}

fn remove_below(directory: &Path, device: u64) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        if let Err(error) = remove(&entry, device) {
            say(&format!("{} stays: {error}", entry.path().display()));
        }
    }
}

fn remove(entry: &DirEntry, device: u64) -> std::io::Result<()> {
    let path = entry.path();
    // Of the entry itself, not of what a link leads to.
    let meta = entry.metadata()?;
    if meta.dev() != device {
        return Ok(());
    }
    let removed = if meta.is_dir() {
        remove_below(&path, device);
        fs::remove_dir(&path)
    } else {
        fs::remove_file(&path)
    };
    match removed {
        // Something is mounted there, such as the new root.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_parameter_of_the_command_line_counts() {
        let parse = |line: &str| RootDisk::parse(line);
        let disk = |device: &str, read_only| RootDisk {
            device: device.into(),
            read_only,
        };
        assert_eq!(parse("console=ttyS0 xminivmm.root=/dev/vda\n"), None);
        assert_eq!(
            parse("quiet minivmm.root=/dev/vda\n"),
            Some(disk("/dev/vda", false))
        );
        assert_eq!(
            parse("minivmm.root=/dev/vda minivmm.root=/dev/vdb,ro"),
            Some(disk("/dev/vdb", true))
        );
    }

    #[test]
    fn file_systems_without_a_disk_are_left_out() {
        let known = "nodev\tsysfs\n\text4\nnodev\ttmpfs\n\tsquashfs\n";
        assert_eq!(on_disks(known).collect::<Vec<_>>(), ["ext4", "squashfs"]);
    }
}
