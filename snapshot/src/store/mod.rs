//! The store: a directory of templates that many processes use at once, and that survives any
//! of them being killed.
//!
//! All locks are `flock` on directories, so nothing is written to hold one and a read-only store
//! can be used:
//!
//! | Directory | Lock | Held by |
//! |---|---|---|
//! | `NAME` | shared | each [`Template`], for as long as its clone lives |
//! | `NAME` | exclusive | a delete, or the end of a flatten; refused while anybody holds it shared |
//! | `.NAME.creating` | exclusive | a [`PendingTemplate`] or a flatten; without a holder it is a leftover |
//! | `.NAME.deleting-INODE` | exclusive | a delete or sweep at work; else a leftover |
//! | `templates` | exclusive | whoever makes, takes or renames a `.NAME.creating`, for an instant |
//!
//! A template that was made of another one's clone has hard links to that one's memory files. So neither of
//! the two can damage the other by being deleted, and what they share is on the disk and in the page cache
//! once.

mod claim;
mod disk_files;
mod error;
mod family;
mod flatten;
mod inheritance;
mod list;
mod lock;
mod memory_files;
mod pending;
mod remove;
mod template;
mod verify;
mod working_set;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, stat};
use rustix::io::Errno;

use crate::error::FileError;
use crate::files;
use crate::manifest::Manifest;
use crate::name::TemplateName;
use remove::Children;

pub use disk_files::TemplateDisk;
pub use error::StoreError;
pub use family::Family;
pub use flatten::Flattened;
pub use inheritance::{CopyReason, Start};
pub use list::ListedTemplate;
pub use pending::PendingTemplate;
pub use template::{MemoryCheck, Template};
pub use verify::{Problem, VerifyReport};
pub use working_set::WorkingSet;

const TEMPLATES: &str = "templates";

/// A store of templates.
#[derive(Clone, Debug)]
pub struct Store {
    templates: PathBuf,
}

impl Store {
    /// Opens the store at `root`; what is missing of it is made, for its owner only.
    ///
    /// # Errors
    /// [`StoreError`] when it is no directory, cannot be made, or is writable by everybody.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let templates = root.join(TEMPLATES);
        ensure_directory(root)?;
        ensure_directory(&templates)?;
        Ok(Self { templates })
    }

    /// The directory that holds the templates.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.templates
    }

    /// Starts a template; `memory_bytes` is the RAM of its guest.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when there is one of that name, [`StoreError::Busy`] while another
    /// process makes one.
    pub fn create(
        &self,
        name: &TemplateName,
        memory_bytes: u64,
    ) -> Result<PendingTemplate, StoreError> {
        PendingTemplate::claim(self, name, memory_bytes)
    }

    /// Opens a template to make a clone of it. It cannot be deleted while the result lives, in
    /// this process or in one that was forked from it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or what is damaged in it.
    pub fn acquire(&self, name: &TemplateName) -> Result<Template, StoreError> {
        Template::acquire(&self.template_path(name), name)
    }

    /// Reads what is known about a template.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or what is wrong with its manifest.
    pub fn inspect(&self, name: &TemplateName) -> Result<Manifest, StoreError> {
        let (_, manifest) = template::read_current_manifest(&self.template_path(name), name)?;
        Ok(manifest)
    }

    /// Finds the templates that were made of a template's clones and need its memory files.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], or a directory cannot be read.
    pub fn family(&self, name: &TemplateName) -> Result<Family, StoreError> {
        let dir = template::open_directory(&self.template_path(name), name)?;
        Ok(Family::of(self, &dir, name)?)
    }

    /// All templates by name. A damaged one is listed with what is wrong with it.
    ///
    /// # Errors
    /// [`StoreError`] when the store itself cannot be read.
    pub fn list(&self) -> Result<Vec<ListedTemplate>, StoreError> {
        list::list(self)
    }

    /// Removes a template.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while clones of it run, [`StoreError::HasChildren`] when other templates
    /// need its files.
    pub fn delete(&self, name: &TemplateName) -> Result<(), StoreError> {
        remove::delete(self, name, Children::Refuse)
    }

    /// Removes a template also when other templates need its files. They keep those they need.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while clones of it run.
    pub fn delete_from_family(&self, name: &TemplateName) -> Result<(), StoreError> {
        remove::delete(self, name, Children::LeaveAlone)
    }

    /// Gives a template whose memory is in layers one file with all of it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while clones of it run, the disk is full, or what is damaged in it. The
    /// template is as it was then.
    pub fn flatten(&self, name: &TemplateName) -> Result<Flattened, StoreError> {
        flatten::flatten(self, name)
    }

    /// Compares every byte of a template with its checksums.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] and the like; damage is in the report.
    pub fn verify(&self, name: &TemplateName) -> Result<VerifyReport, StoreError> {
        verify::verify(&self.template_path(name), name)
    }

    /// Removes what crashed processes left; returns how many leftovers that were. Creating,
    /// deleting and listing do this by themselves.
    ///
    /// # Errors
    /// [`StoreError`] for the first leftover that cannot be removed.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        remove::sweep(self)
    }

    fn template_path(&self, name: &TemplateName) -> PathBuf {
        self.templates.join(name.as_str())
    }
}

fn ensure_directory(path: &Path) -> Result<(), StoreError> {
    let found = match stat(path) {
        Err(Errno::NOENT) => {
            make_directory(path)?;
            stat(path)
        }
        other => other,
    };
    let not_directory = || FileError::NotDirectory {
        path: path.to_path_buf(),
    };
    let mode = match found {
        Ok(found) => found.st_mode,
        Err(Errno::NOTDIR) => return Err(not_directory().into()),
        Err(errno) => return Err(FileError::on("inspect", path)(errno).into()),
    };
    if !FileType::from_raw_mode(mode).is_dir() {
        return Err(not_directory().into());
    }
    if Mode::from_raw_mode(mode).contains(Mode::WOTH) {
        return Err(StoreError::WorldWritable {
            path: path.to_path_buf(),
            mode: mode & 0o7777,
        });
    }
    Ok(())
}

/// Makes a directory, and those above it that are missing, for their owner only.
fn make_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(files::MODE_DIRECTORY.as_raw_mode())
        .create(path)
        .map_err(FileError::on("create", path))
}
