//! The boot id of a clone.
//!
//! The kernel makes its boot id once and cannot be told another, so all clones would have the
//! template's. A file of ours is mounted over it, before there is a template; a clone only writes a
//! new id into it. Programs that have read the old one keep it, and a process with a mount of /proc
//! of its own, as in a container, sees the kernel's.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::mount::mount_bind;

use super::read_kernel_file;
use crate::error::Error;
use crate::say;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A different UUID at every read, available before the generator is fully seeded.
const RANDOM_UUID: &str = "/proc/sys/kernel/random/uuid";
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
        let text = read_kernel_file(Path::new(RANDOM_UUID))?;
        // As long as the one before.
        cover
            .write_all_at(format!("{text}\n").as_bytes(), 0)
            .map_err(Error::file("write", COVER))?;
        self.text = text;
        Ok(())
    }
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
