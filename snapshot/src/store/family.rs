//! Which templates have links to the memory files of another.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Stat, statat};
use rustix::io::Errno;

use super::Store;
use crate::error::FileError;
use crate::files;
use crate::memory::{Layer, MAX_LAYERS};
use crate::name::TemplateName;

/// The templates that were made of a template's clones, or of theirs, and need its memory file.
///
/// They are found by their links and not by what manifests say: a damaged template is found too, and one that
/// was copied with its files is not.
#[derive(Debug)]
pub struct Family {
    /// By name.
    pub children: Vec<TemplateName>,
    /// Bytes on disk that stay for them when the template is deleted.
    pub kept_bytes: u64,
}

/// What tells a file from every other of this machine.
#[derive(Clone, Copy, Eq, PartialEq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }
}

impl Family {
    /// `dir` is the open directory of the template.
    pub(super) fn of(
        store: &Store,
        dir: impl AsFd,
        name: &TemplateName,
    ) -> Result<Self, FileError> {
        let mut family = Self {
            children: Vec::new(),
            kept_bytes: 0,
        };
        let mine = memory_files(&dir, &store.template_path(name))?;
        let has_links = |stat: &Stat| stat.st_nlink > 1;
        let Some(own) = mine.first().filter(|file| has_links(file)) else {
            return Ok(family);
        };
        let own = FileId::of(own);
        // Files that a template which is no child has as well.
        let mut others = Vec::new();
        for other in template_names(store)? {
            if other == *name {
                continue;
            }
            let path = store.template_path(&other);
            // What is no directory, or is gone by now, has no files.
            let Ok(their_dir) = files::open_directory(&path) else {
                continue;
            };
            let theirs = memory_files(&their_dir, &path)?;
            let ids = theirs.iter().map(FileId::of);
            if ids.clone().any(|id| id == own) {
                family.children.push(other);
            } else {
                others.extend(ids);
            }
        }
        family.children.sort();
        if family.children.is_empty() {
            return Ok(family);
        }
        let stays = |stat: &&Stat| has_links(stat) && !others.contains(&FileId::of(stat));
        let kept = mine.iter().filter(stays);
        family.kept_bytes = kept.map(files::allocated_bytes).sum();
        Ok(family)
    }
}

/// The memory files in a template's directory, its own first; none where that is missing.
fn memory_files(dir: impl AsFd, path: &Path) -> Result<Vec<Stat>, FileError> {
    let mut files = Vec::new();
    for layer in Layer::all(MAX_LAYERS) {
        let name = layer.file_name();
        match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => files.push(stat),
            Err(Errno::NOENT) => break,
            Err(errno) => return Err(FileError::on("inspect", &path.join(name))(errno)),
        }
    }
    Ok(files)
}

fn template_names(store: &Store) -> Result<Vec<TemplateName>, FileError> {
    let unreadable = |error| FileError::on("read", store.path())(error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(store.path()).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        // What has no template's name was not put there by a store.
        names.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    Ok(names)
}
