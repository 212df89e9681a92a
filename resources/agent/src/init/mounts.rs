//! The file systems that every program expects.

use std::ffi::CStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::error::Error;

struct Mount {
    target: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: Option<&'static CStr>,
}

const NO_DEVICES: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const DATA_ONLY: MountFlags = NO_DEVICES.union(MountFlags::NOEXEC);

/// In mounting order: a target inside another mount comes after it.
const MOUNTS: [Mount; 8] = [
    Mount {
        target: "/proc",
        kind: "proc",
        flags: DATA_ONLY,
        options: None,
    },
    Mount {
        target: "/sys",
        kind: "sysfs",
        flags: DATA_ONLY,
        options: None,
    },
    Mount {
        target: "/dev",
        kind: "devtmpfs",
        flags: MountFlags::NOSUID,
        options: Some(c"mode=0755"),
    },
    Mount {
        target: "/dev/pts",
        kind: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: Some(c"gid=5,mode=0620,ptmxmode=0666"),
    },
    Mount {
        target: "/dev/shm",
        kind: "tmpfs",
        flags: NO_DEVICES,
        options: Some(c"mode=1777"),
    },
    Mount {
        target: "/run",
        kind: "tmpfs",
        flags: NO_DEVICES,
        options: Some(c"mode=0755"),
    },
    Mount {
        target: "/tmp",
        kind: "tmpfs",
        flags: NO_DEVICES,
        options: Some(c"mode=1777"),
    },
    Mount {
        target: "/sys/fs/cgroup",
        kind: "cgroup2",
        flags: DATA_ONLY,
        options: None,
    },
];

/// Names that programs expect in /dev and devtmpfs does not make.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what is not mounted yet.
pub fn mount_all() -> Result<(), Error> {
    for Mount {
        target,
        kind,
        flags,
        options,
    } in MOUNTS
    {
        fs::create_dir_all(target).map_err(Error::file("create", target))?;
        match mount(kind, target, kind, flags, options) {
            // Busy: the kernel or an earlier init has mounted it.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(errno) => return Err(Error::file("mount", target)(errno)),
        }
    }
    for (target, link) in DEVICE_LINKS {
        match symlink(target, link) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(Error::file("create", link)(error));
            }
            _ => {}
        }
    }
    Ok(())
}
