//! What is done with files of the state directory: locks, JSON that is replaced as a whole, removal.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Opens or makes a lock file.
///
/// # Errors
/// It cannot be opened.
pub fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Locks a lock file, which is made if it is missing; `None` when another process has it.
///
/// # Errors
/// It cannot be opened or locked.
pub fn try_lock(path: &Path) -> anyhow::Result<Option<File>> {
    let context = || format!("Cannot lock {}", path.display());
    let file = open_lock(path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(context),
    }
}

/// Replaces a file at once, so that a reader sees the old one or the new one.
///
/// Not synced to disk: what is told there does not survive what would lose it.
///
/// # Errors
/// The file cannot be written.
pub fn replace_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(value)?)?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("Cannot write {}", path.display()))
}

/// Removes a file, which may be gone already.
///
/// # Errors
/// It cannot be removed.
pub fn remove_if_there(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
