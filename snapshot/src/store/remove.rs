//! Deleting templates, and sweeping what crashed processes left.
//!
//! A directory is renamed out of sight first, with its exclusive lock held, and emptied then:
//! a crash on the way leaves something that no reader takes for a template.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fstat};

use super::family::Family;
use super::{Store, StoreError, lock, template};
use crate::error::FileError;
use crate::files;
use crate::name::TemplateName;

const CREATING: &str = ".creating";
const DELETING: &str = ".deleting-";

/// What to do with a template that others were made from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Children {
    /// It stays.
    Refuse,
    /// It goes; they have links of their own to its files.
    LeaveAlone,
}

/// Where a template is built before it is published.
pub(super) fn pending_path(store: &Store, name: &TemplateName) -> PathBuf {
    store.path().join(format!(".{name}{CREATING}"))
}

/// Removes a template; one that others have memory files of only when `children` may be left alone.
pub(super) fn delete(
    store: &Store,
    name: &TemplateName,
    children: Children,
) -> Result<(), StoreError> {
    sweep_for_tidiness(store);
    let path = store.template_path(name);
    let dir = template::open_directory(&path, name)?;
    if !lock::try_lock(&dir, &path, FlockOperation::NonBlockingLockExclusive)? {
        return Err(StoreError::InUse {
            name: name.clone(),
            clones: lock::holders(&dir),
        });
    }
    if !lock::is_still_at(&dir, &path)? {
        return Err(template::not_found(&path, name));
    }
    if children == Children::Refuse {
        let family = Family::of(store, &dir, name)?;
        if !family.children.is_empty() {
            return Err(StoreError::HasChildren {
                name: name.clone(),
                children: family.children,
                kept_bytes: family.kept_bytes,
            });
        }
    }
    let hidden = hide(&dir, &path, name.as_str())?;
    files::sync_directory(files::open_directory(store.path())?, store.path())?;
    remove_tree(&hidden)?;
    Ok(())
}

/// Removes a directory whose lock is held.
pub(super) fn discard(
    store: &Store,
    dir: &OwnedFd,
    path: &Path,
    name: &TemplateName,
) -> Result<(), FileError> {
    let claims = lock::lock_claims(store.path())?;
    let hidden = hide(dir, path, name.as_str())?;
    drop(claims);
    remove_tree(&hidden)
}

/// Removes the leftovers whose makers are gone.
pub(super) fn sweep(store: &Store) -> Result<usize, StoreError> {
    let mut swept = 0;
    for path in leftovers(store)? {
        if let Some((_lock, hidden)) = take_leftover(store, &path)? {
            remove_tree(&hidden)?;
            swept += 1;
        }
    }
    Ok(swept)
}

/// Sweeps on the side of another command, whose success does not depend on it: what cannot be
/// removed now, on a read-only store for one, stays out of sight and is tried again next time.
pub(super) fn sweep_for_tidiness(store: &Store) {
    drop(sweep(store));
}

/// Whether a directory entry is one that [`sweep`] looks at.
pub(super) fn is_leftover_name(name: &OsStr) -> bool {
    let Some(name) = name.to_str().and_then(|name| name.strip_prefix('.')) else {
        return false;
    };
    let owner = match name.rsplit_once(DELETING) {
        Some((owner, inode)) if inode.bytes().all(|byte| byte.is_ascii_digit()) => Some(owner),
        _ => name.strip_suffix(CREATING),
    };
    owner.is_some_and(|owner| owner.parse::<TemplateName>().is_ok())
}

fn remove_tree(path: &Path) -> Result<(), FileError> {
    std::fs::remove_dir_all(path).map_err(FileError::on("remove", path))
}

fn leftovers(store: &Store) -> Result<Vec<PathBuf>, FileError> {
    let unreadable = |error| FileError::on("read", store.path())(error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(store.path()).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if is_leftover_name(&name) {
            found.push(store.path().join(name));
        }
    }
    Ok(found)
}

/// Takes a leftover nobody holds out of the way of the next creator; returns its lock and where
/// it is now.
fn take_leftover(store: &Store, path: &Path) -> Result<Option<(OwnedFd, PathBuf)>, StoreError> {
    let _claims = lock::lock_claims(store.path())?;
    let dir = match files::open_directory(path) {
        Ok(dir) => dir,
        // Its maker finished it, or another sweep was faster.
        Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let is_ours = lock::try_lock(&dir, path, FlockOperation::NonBlockingLockExclusive)?
        && lock::is_still_at(&dir, path)?;
    if !is_ours {
        return Ok(None);
    }
    let file_name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    if file_name.contains(DELETING) {
        return Ok(Some((dir, path.to_path_buf())));
    }
    let name = file_name.trim_start_matches('.').trim_end_matches(CREATING);
    let hidden = hide(&dir, path, name)?;
    Ok(Some((dir, hidden)))
}

/// Renames a directory whose exclusive lock is held to a name that nobody else can choose: its
/// inode number is taken as long as it exists.
fn hide(dir: &OwnedFd, path: &Path, name: &str) -> Result<PathBuf, FileError> {
    let inode = fstat(dir).map_err(FileError::on("inspect", path))?.st_ino;
    let hidden = path.with_file_name(format!(".{name}{DELETING}{inode}"));
    rustix::fs::rename(path, &hidden).map_err(FileError::on("rename", path))?;
    Ok(hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_this_store_makes_are_leftovers() {
        for name in [
            ".a.creating",
            ".a.b.creating",
            ".a.deleting-7",
            ".a.creating.deleting-7",
        ] {
            assert!(is_leftover_name(OsStr::new(name)), "{name}");
        }
        for name in [
            "a",
            "a.creating",
            ".git",
            "..",
            ".creating",
            ".a.deleting-x",
            ".a b.creating",
        ] {
            assert!(!is_leftover_name(OsStr::new(name)), "{name}");
        }
    }
}
