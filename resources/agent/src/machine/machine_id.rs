//! /etc/machine-id, and the copy of it that some guests have for D-Bus.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::mount::mount_bind;

use super::{overwrite, read_kernel_file};
use crate::error::{Error, Refusal};

const MACHINE_ID: &str = "/etc/machine-id";
const DBUS_MACHINE_ID: &str = "/var/lib/dbus/machine-id";
/// What is mounted over a machine id on a read-only file system.
const COVER: &str = "/run/minivmm/machine-id";
const COVER_MODE: u32 = 0o444;
/// A different UUID at every read, available before the generator is fully seeded.
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";
const DIGITS: usize = 32;

/// Checks a machine id before anything is changed.
pub fn check(id: &str) -> Result<(), Refusal> {
    let hexadecimal = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    if id.len() != DIGITS || !id.bytes().all(hexadecimal) {
        return Err(Refusal::invalid(format!(
            "Machine id {id:?}: expected {DIGITS} lower-case hexadecimal digits"
        )));
    }
    Ok(())
}

/// Replaces the machine id of a guest that has one.
pub fn set(id: &str) -> Result<(), Error> {
    replace(Path::new(MACHINE_ID), id)?;
    // Usually a link to the other one.
    let copy = fs::symlink_metadata(DBUS_MACHINE_ID).is_ok_and(|metadata| metadata.is_file());
    if copy {
        replace(Path::new(DBUS_MACHINE_ID), id)?;
    }
    Ok(())
}

/// Gives a guest whose /etc/machine-id is there but empty an id at random.
pub fn fill_empty() -> Result<(), Error> {
    match fs::metadata(MACHINE_ID) {
        Ok(metadata) if metadata.len() == 0 => {
            let uuid = read_kernel_file(Path::new(RANDOM_UUID))?;
            set(&uuid.replace('-', ""))
        }
        _ => Ok(()),
    }
}

/// Does nothing where there is no file.
fn replace(path: &Path, id: &str) -> Result<(), Error> {
    match overwrite(path, &format!("{id}\n")) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => cover(path, id),
        Err(error) => Err(Error::file("write", path)(error)),
    }
}

fn cover(path: &Path, id: &str) -> Result<(), Error> {
    super::make_run_directory()?;
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(COVER_MODE)
        .open(COVER)
        .map_err(Error::file("create", COVER))?;
    writeln!(file, "{id}").map_err(Error::file("write", COVER))?;
    mount_bind(COVER, path).map_err(Error::file("mount over", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_replaces_whatever_was_there_and_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machine-id");
        replace(&path, "ab").unwrap();
        assert!(!path.exists());
        for old in ["", "cd\n", "something longer\n"] {
            fs::write(&path, old).unwrap();
            replace(&path, "ab").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "ab\n");
        }
    }

    #[test]
    fn it_is_checked() {
        check("0123456789abcdef0123456789abcdef").unwrap();
        for id in [
            "0123",
            "0123456789ABCDEF0123456789ABCDEF",
            "0123456789abcdef0123456789abcdeg",
        ] {
            assert!(check(id).is_err(), "{id}");
        }
    }
}
