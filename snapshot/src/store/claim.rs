//! The directory a template is made in: one for each name, so its lock is the right to make it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags, renameat_with, statat};
use rustix::io::Errno;

use super::{Store, StoreError, lock, remove};
use crate::error::FileError;
use crate::files;
use crate::name::TemplateName;

/// The directory a template is made in, with its exclusive lock; removed when dropped before it
/// is kept.
#[derive(Debug)]
pub(super) struct ClaimedDirectory {
    fd: OwnedFd,
    store: Store,
    path: PathBuf,
    name: TemplateName,
    is_kept: bool,
}

impl ClaimedDirectory {
    /// Claims the one directory in which a template of this name can be made.
    pub(super) fn claim(store: &Store, name: &TemplateName) -> Result<Self, StoreError> {
        Self::claim_if(store, name, |exists| {
            if exists {
                Err(StoreError::Exists { name: name.clone() })
            } else {
                Ok(())
            }
        })
    }

    /// Claims it for another form of a template that there is.
    pub(super) fn claim_beside(store: &Store, name: &TemplateName) -> Result<Self, StoreError> {
        Self::claim_if(store, name, |_| Ok(()))
    }

    fn claim_if(
        store: &Store,
        name: &TemplateName,
        is_allowed: impl FnOnce(bool) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        let path = remove::pending_path(store, name);
        let claims = lock::lock_claims(store.path())?;
        is_allowed(exists(&store.template_path(name))?)?;
        let fd = open_or_make(&path)?;
        if !lock::try_lock(&fd, &path, FlockOperation::NonBlockingLockExclusive)? {
            return Err(StoreError::Busy { name: name.clone() });
        }
        // From here on the lock of the directory itself keeps the others away.
        drop(claims);
        let directory = Self {
            fd,
            store: store.clone(),
            path,
            name: name.clone(),
            is_kept: false,
        };
        directory.empty()?;
        Ok(directory)
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Where it is now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it to the place of the finished template, with a clone's lock on it, so that nobody
    /// who sees it finds it locked as if it were being deleted.
    pub(super) fn publish(&mut self) -> Result<(), StoreError> {
        let target = self.store.template_path(&self.name);
        let claims = lock::lock_claims(self.store.path())?;
        let is_shared =
            lock::try_lock(&self.fd, &self.path, FlockOperation::NonBlockingLockShared)?;
        if !is_shared {
            return Err(StoreError::Busy {
                name: self.name.clone(),
            });
        }
        rename_to_new(&self.path, &target).map_err(|errno| match errno {
            Errno::EXIST | Errno::NOTEMPTY => StoreError::Exists {
                name: self.name.clone(),
            },
            other => FileError::on("publish", &target)(other).into(),
        })?;
        drop(claims);
        self.path = target;
        let templates = self.store.path();
        files::sync_directory(files::open_directory(templates)?, templates)?;
        Ok(())
    }

    /// Changes places with the template of the same name, whose exclusive lock is `before`, and removes that.
    /// Whenever this is interrupted, one of the two is the template and the other a leftover.
    pub(super) fn replace(mut self, before: &OwnedFd) -> Result<(), StoreError> {
        let target = self.store.template_path(&self.name);
        let claims = lock::lock_claims(self.store.path())?;
        if !lock::is_still_at(before, &target)? {
            return Err(StoreError::InUse {
                name: self.name.clone(),
                clones: None,
            });
        }
        // From the exchange on clones may be made of it.
        lock::try_lock(&self.fd, &self.path, FlockOperation::NonBlockingLockShared)?;
        renameat_with(CWD, &self.path, CWD, &target, RenameFlags::EXCHANGE)
            .map_err(FileError::on("put the new files in the place of", &target))?;
        drop(claims);
        self.is_kept = true;
        let templates = self.store.path();
        files::sync_directory(files::open_directory(templates)?, templates)?;
        // What was the template is at the place of the claim now. If it cannot be removed, it is a
        // leftover, which the next command sweeps.
        drop(remove::discard(&self.store, before, &self.path, &self.name));
        Ok(())
    }

    /// Ends the claim without removing the directory; returns it with its lock.
    pub(super) fn keep(mut self) -> Result<OwnedFd, FileError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(FileError::on("hold", &self.path))?;
        self.is_kept = true;
        Ok(fd)
    }

    /// Removes what a crashed creator left in it.
    fn empty(&self) -> Result<(), FileError> {
        let unreadable = |error| FileError::on("read", &self.path)(error);
        for entry in std::fs::read_dir(&self.path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            std::fs::remove_file(&path).map_err(FileError::on("remove", &path))?;
        }
        Ok(())
    }
}

impl Drop for ClaimedDirectory {
    fn drop(&mut self) {
        if !self.is_kept {
            // What cannot be removed here is a leftover, which the next command sweeps.
            drop(remove::discard(
                &self.store,
                &self.fd,
                &self.path,
                &self.name,
            ));
        }
    }
}

fn open_or_make(path: &Path) -> Result<OwnedFd, FileError> {
    match rustix::fs::mkdir(path, files::MODE_DIRECTORY) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(FileError::on("create", path)(errno)),
    }
    files::open_directory(path)
}

fn exists(path: &Path) -> Result<bool, FileError> {
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(FileError::on("inspect", path)(errno)),
    }
}

fn rename_to_new(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems know only the plain call; that replaces no directory either, unless it
        // is empty, and an empty one is no template.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::rename(from, to),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crashed_creator_left_is_not_taken_over() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(&root.path().join("store")).unwrap();
        let name: TemplateName = "t".parse().unwrap();
        let pending = remove::pending_path(&store, &name);
        std::fs::create_dir(&pending).unwrap();
        std::fs::write(pending.join("memory"), "old").unwrap();

        let directory = ClaimedDirectory::claim(&store, &name).unwrap();

        assert_eq!(directory.path(), pending);
        assert_eq!(std::fs::read_dir(&pending).unwrap().count(), 0);
    }
}
