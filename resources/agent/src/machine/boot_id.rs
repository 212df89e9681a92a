//! The boot id of a clone.
//!
//! The kernel makes its boot id once and cannot be told another, so all clones would have the
//! template's. A file of ours is mounted over it, before there is a template; a clone only writes a
//! new id into it. Programs that have read the old one keep it, and a process with a mount of /proc
//! of its own, as in a container, sees the kernel's.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::mount::mount_bind;
use rustix::rand::{GetRandomFlags, getrandom};

use super::read_kernel_file;
use crate::error::Error;
use crate::say;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const UUID_BYTES: usize = 16;
const COVER: &str = "/run/minivmm/boot_id";
const MODE: u32 = 0o444;

/// What this machine answers when it is asked for its boot id.
#[derive(Debug)]
pub struct BootId {
    text: String,
    /// What is mounted over the kernel's; none where that could not be done.
    cover: Option<File>,
}

impl BootId {
    /// Covers the kernel's. A machine that does not allow that keeps the kernel's.
    pub fn open() -> Result<Self, Error> {
        let text = read_kernel_file(Path::new(BOOT_ID))?;
        let cover = cover(&text).inspect_err(|error| {
            say(&format!(
                "Clones will all have the template's boot id: {error}"
            ));
        });
        Ok(Self {
            text,
            cover: cover.ok(),
        })
    }

    /// The id.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Takes a new one, from the kernel's random numbers as they are now.
    pub fn renew(&mut self) -> Result<(), Error> {
        let Some(cover) = &self.cover else {
            return Ok(());
        };
        let text = random_uuid()?;
        // As long as the one before.
        cover
            .write_all_at(format!("{text}\n").as_bytes(), 0)
            .map_err(Error::file("write", COVER))?;
        self.text = text;
        Ok(())
    }
}

/// As the kernel makes it, version 4 of RFC 9562. Its file of them would cost a clone dozens of page faults.
fn random_uuid() -> Result<String, Error> {
    let mut bytes = [0; UUID_BYTES];
    let filled = getrandom(&mut bytes[..], GetRandomFlags::empty())
        .map_err(Error::system("read random numbers"))?;
    debug_assert_eq!(filled, UUID_BYTES, "up to 256 bytes come at once");
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(2 * UUID_BYTES + 4);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").unwrap_or_default();
    }
    Ok(text)
}

/// Another agent before this one may have left its own.
fn cover(text: &str) -> Result<File, Error> {
    super::make_run_directory()?;
    match fs::remove_file(COVER) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(Error::file("remove", COVER)(error));
        }
        _ => {}
    }
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(COVER)
        .map_err(Error::file("create", COVER))?;
    file.write_all_at(format!("{text}\n").as_bytes(), 0)
        .map_err(Error::file("write", COVER))?;
    mount_bind(COVER, BOOT_ID).map_err(Error::file("mount over", BOOT_ID))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_have_the_kernels_form_and_differ() {
        let [first, second] = [random_uuid().unwrap(), random_uuid().unwrap()];
        assert_ne!(first, second);
        let parts: Vec<_> = first.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&first[14..15], "4");
        assert!(matches!(&first[19..20], "8" | "9" | "a" | "b"), "{first}");
    }
}
