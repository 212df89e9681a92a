//! Brings file systems on disks to rest: everything is on the disk, and nothing changes there until
//! they go on. A template's disk is then one that a clean unmount would have left.
//!
//! To be done when no process runs: one that waited for a file system could not be held.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, ioctl, opcode};

use crate::say;

const MOUNTS: &str = "/proc/self/mountinfo";
/// `FIFREEZE` and `FITHAW` of include/uapi/linux/fs.h; their argument is not used.
const FREEZE: u32 = opcode::read_write::<i32>(b'X', 119);
const THAW: u32 = opcode::read_write::<i32>(b'X', 120);

/// The file systems that are at rest. They go on when this is told to, not when it is dropped.
#[derive(Debug, Default)]
pub struct FileSystems {
    /// Where they are mounted, open, in the order in which they came to rest.
    at_rest: Vec<(PathBuf, File)>,
}

impl FileSystems {
    /// Brings all that can be written to rest. One that does not want to is named on the console:
    /// memory and disk of a template belong together anyway.
    pub fn freeze(&mut self) {
        let mounts = match fs::read_to_string(MOUNTS) {
            Ok(mounts) => mounts,
            Err(error) => return say(&format!("Cannot read {MOUNTS}: {error}")),
        };
        for path in writable_on_disks(&mounts) {
            let frozen =
                File::open(&path).and_then(|root| Ok(change::<FREEZE>(&root).map(|()| root)?));
            match frozen {
                Ok(root) => self.at_rest.push((path, root)),
                // The guest has done so itself, or the file system does not know how.
                Err(error) if is_left_alone(&error) => {}
                Err(error) => say(&format!("{} does not rest: {error}", path.display())),
            }
        }
    }

    /// Lets them go on.
    pub fn thaw(&mut self) {
        while let Some((path, root)) = self.at_rest.pop() {
            if let Err(error) = change::<THAW>(&root) {
                say(&format!("{} does not go on: {error}", path.display()));
            }
        }
    }
}

fn change<const REQUEST: u32>(root: &File) -> Result<(), Errno> {
    // SAFETY: the kernel reads and writes nothing for these requests.
    let request = unsafe { NoArg::<REQUEST>::new() };
    // SAFETY: as above.
    unsafe { ioctl(root, request) }
}

fn is_left_alone(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BUSY | Errno::OPNOTSUPP)
    )
}

/// Where file systems on block devices are mounted that can be written; each once, those mounted last
/// first, as they may be in files of the others.
fn writable_on_disks(mounts: &str) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<_> = mounts
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut fields = mount.split(' ').skip(2);
            let (device, _root, path) = (fields.next()?, fields.next()?, fields.next()?);
            // Kernel file systems have no device, and so no major number.
            if device.starts_with("0:") || !seen.insert(device.to_owned()) {
                return None;
            }
            let options = file_system.split(' ').nth(2)?;
            let is_writable = options.split(',').any(|option| option == "rw");
            is_writable.then(|| PathBuf::from(unescaped(path)))
        })
        .collect();
    found.reverse();
    found
}

/// Space, tab, newline and backslash are three octal digits in the kernel's list.
fn unescaped(path: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n")];
    let plain = escapes.iter().fold(path.to_owned(), |path, (code, plain)| {
        path.replace(code, plain)
    });
    plain.replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_file_systems_on_disks_are_found() {
        let mounts = "\
            1 1 0:2 / / rw - rootfs rootfs rw\n\
            20 1 0:19 / /proc rw,relatime - proc proc rw\n\
            21 1 254:0 / /data rw,relatime shared:1 - ext4 /dev/vda rw\n\
            22 1 254:0 /sub /again rw - ext4 /dev/vda rw\n\
            23 1 254:16 / /media ro - ext4 /dev/vdb ro,norecovery\n\
            24 1 254:32 / /a\\040b rw - xfs /dev/vdc rw,attr2\n\
            25 1 7:0 / /loop rw - ext4 /dev/loop0 rw\n\
            nonsense\n";
        let found = writable_on_disks(mounts);
        assert_eq!(found, ["/loop", "/a b", "/data"].map(PathBuf::from));
    }
}
