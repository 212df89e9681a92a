//! Makes the output directory appear as a whole.
//!
//! Everything is written to a directory beside it, synced, and moved into place with one rename. A
//! build holds a lock on its directory, so that the next one can tell a crash's leftovers, which it
//! removes, from another build at work.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use tempfile::TempDir;

use crate::MANIFEST_FILE;
use crate::error::Error;

const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A directory that becomes the output, or vanishes with this value.
#[derive(Debug)]
pub struct Staging {
    output: PathBuf,
    directory: PathBuf,
    lock: File,
}

impl Staging {
    /// Checks the output directory and begins one beside it.
    pub fn begin(output: &Path) -> Result<Self, Error> {
        check_output(output)?;
        let absolute = std::path::absolute(output).map_err(Error::file("find", output))?;
        let name = absolute.file_name().ok_or_else(|| {
            Error::file("create", output)(io::Error::other("the path has no last component"))
        })?;
        let parent = absolute.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(Error::file("create", parent))?;
        let prefix = format!(".{}.partial-", name.display());
        remove_leftovers(parent, &prefix);

        let directory = parent.join(format!("{prefix}{}", std::process::id()));
        DirBuilder::new()
            .mode(DIRECTORY_MODE)
            .create(&directory)
            .map_err(Error::file("create", &directory))?;
        let lock = File::open(&directory).map_err(Error::file("open", &directory))?;
        let staging = Self {
            output: absolute,
            directory,
            lock,
        };
        flock(&staging.lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| Error::file("lock", &staging.directory)(errno.into()))?;
        Ok(staging)
    }

    /// Writes a file and waits until it is on disk.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.directory.join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(content)?;
                file.sync_all()
            })
            .map_err(Error::file("write", path))
    }

    /// Where a file of that name is until it is published, for whoever writes it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Waits until a file that was written by others is on disk.
    pub fn sync(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        let permissions = fs::Permissions::from_mode(FILE_MODE);
        File::open(&path)
            .and_then(|file| {
                file.set_permissions(permissions)?;
                file.sync_all()
            })
            .map_err(Error::file("sync", path))
    }

    /// A directory for what is not published, on the same disk. It goes with the value, or with this one.
    pub fn scratch(&self) -> Result<TempDir, Error> {
        tempfile::Builder::new()
            .prefix(".scratch-")
            .tempdir_in(&self.directory)
            .map_err(Error::file("create a directory in", &self.directory))
    }

    /// Moves the directory into place, and returns where it is.
    pub fn publish(self) -> Result<PathBuf, Error> {
        self.lock
            .sync_all()
            .map_err(Error::file("sync", &self.directory))?;
        let output = &self.output;
        // An older guest is swapped out, and removed with this value.
        let flags = if output.exists() {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::NOREPLACE
        };
        renameat_with(CWD, &self.directory, CWD, output, flags)
            .map_err(|errno| Error::file("publish", output)(errno.into()))?;
        let parent = output.parent().unwrap_or(Path::new("/"));
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(Error::file("sync", parent))?;
        Ok(output.clone())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Not there any more when it has been published to a new place. What cannot be removed now
        // is removed by the next build.
        fs::remove_dir_all(&self.directory).ok();
    }
}

/// Only a guest or an empty directory is replaced.
fn check_output(output: &Path) -> Result<(), Error> {
    match fs::read_dir(output) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::file("use as output directory", output)(error)),
        Ok(mut entries) => {
            if entries.next().is_none() || output.join(MANIFEST_FILE).is_file() {
                return Ok(());
            }
            Err(Error::OutputInUse {
                path: output.to_owned(),
            })
        }
    }
}

fn remove_leftovers(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.filter_map(Result::ok) {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let Ok(directory) = File::open(entry.path()) else {
            continue;
        };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            // If this fails too, the leftover only takes space.
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_is_seen_before_it_is_published_and_nothing_else_after() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("deep/guest");
        let staging = Staging::begin(&output).unwrap();
        staging.write("a", b"1").unwrap();
        assert!(!output.exists());
        assert_eq!(staging.publish().unwrap(), output);
        assert_eq!(fs::read(output.join("a")).unwrap(), b"1");
        assert_eq!(names(&directory.path().join("deep")), ["guest"]);
    }

    #[test]
    fn failed_build_leaves_the_older_guest() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("guest");
        for content in [b"1", b"2"] {
            let staging = Staging::begin(&output).unwrap();
            staging.write(MANIFEST_FILE, content).unwrap();
            staging.publish().unwrap();
            assert_eq!(fs::read(output.join(MANIFEST_FILE)).unwrap(), content);
        }
        drop(Staging::begin(&output).unwrap());
        assert_eq!(fs::read(output.join(MANIFEST_FILE)).unwrap(), b"2");
        assert_eq!(names(directory.path()), ["guest"]);
    }

    #[test]
    fn directory_with_something_else_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("thesis.txt"), "x").unwrap();
        let error = Staging::begin(directory.path()).unwrap_err().to_string();
        assert!(error.contains("guest.json"), "{error}");
        assert_eq!(names(directory.path()), ["thesis.txt"]);
    }

    #[test]
    fn leftovers_of_a_crash_are_removed_and_a_running_build_is_not() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(".guest.partial-1")).unwrap();
        let running = File::open({
            let path = directory.path().join(".guest.partial-2");
            fs::create_dir(&path).unwrap();
            path
        })
        .unwrap();
        flock(&running, FlockOperation::LockExclusive).unwrap();
        drop(Staging::begin(&directory.path().join("guest")).unwrap());
        assert_eq!(names(directory.path()), [".guest.partial-2"]);
    }
}
