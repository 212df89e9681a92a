//! A template that is held open: its manifest, its state, its memory and its lock.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, FlockOperation};
use rustix::io::Errno;

use super::disk_files::{self, TemplateDisk};
use super::memory_files::MemoryFiles;
use super::working_set::{self, WorkingSet};
use super::{StoreError, lock};
use crate::error::FileError;
use crate::files;
use crate::manifest::{self, FileRecord, Manifest, ManifestError};
use crate::memory::{self, ChunkDigests, MemoryError, MemoryLayers};
use crate::name::TemplateName;
use crate::state::{self, StateFile};

/// Name of the state file in a template's directory.
pub(super) const STATE_NAME: &str = "state";

/// A published template, whole as far as can be told without reading its memory, and held
/// against deletion for as long as this lives. The hold is inherited over fork, not over exec.
#[derive(Debug)]
pub struct Template {
    name: TemplateName,
    path: PathBuf,
    manifest: Manifest,
    state: StateFile,
    memory: MemoryFiles,
    disks: Vec<TemplateDisk>,
    /// Open for its shared lock, and to find the digests by.
    dir: OwnedFd,
}

/// How the memory files were recognised.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MemoryCheck {
    /// By their lengths and modification times.
    Stamp,
    /// A modification time was not the published one, so the whole content was compared; a verify
    /// gives the file its time back, where it may.
    Content,
}

impl Template {
    pub(super) fn acquire(path: &Path, name: &TemplateName) -> Result<Self, StoreError> {
        Self::load(open_locked(path, name)?, path, name)
    }

    /// Opens the files of a directory whose shared lock is held.
    pub(super) fn load(dir: OwnedFd, path: &Path, name: &TemplateName) -> Result<Self, StoreError> {
        let manifest = read_manifest(&dir, path, name)?;
        let state = read_state(&dir, path, &manifest.files.state, STATE_NAME)?;
        let memory = MemoryFiles::open(&dir, path, &manifest)?;
        let records = manifest.files.disks.iter().enumerate();
        let disks = records
            .map(|(number, record)| disk_files::open(&dir, path, number, record))
            .collect::<Result<Vec<_>, _>>()?;
        let template = Self {
            name: name.clone(),
            path: path.to_path_buf(),
            manifest,
            state,
            memory,
            disks,
            dir,
        };
        if template.memory_check() == MemoryCheck::Content {
            template.verify_memory()?;
        }
        let is_other = |disk: &&TemplateDisk| !disk.has_published_time();
        template
            .disks
            .iter()
            .filter(is_other)
            .try_for_each(TemplateDisk::verify)?;
        Ok(template)
    }

    /// The name it was acquired by.
    #[must_use]
    pub fn name(&self) -> &TemplateName {
        &self.name
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is known about it.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The machine's state.
    #[must_use]
    pub fn state(&self) -> &StateFile {
        &self.state
    }

    /// The guest's memory, open for reading only. Map it `MAP_PRIVATE`.
    #[must_use]
    pub fn memory(&self) -> &Arc<MemoryLayers> {
        self.memory.layers()
    }

    /// The pages that clones write until they are ready; empty while nobody has told.
    #[must_use]
    pub fn working_set(&self) -> WorkingSet {
        WorkingSet::read(self.dir.as_fd(), &self.path).unwrap_or_default()
    }

    /// Whether a clone has told, be it something that is of no use.
    #[must_use]
    pub fn has_working_set(&self) -> bool {
        rustix::fs::accessat(
            &self.dir,
            working_set::FILE_NAME,
            Access::EXISTS,
            AtFlags::empty(),
        )
        .is_ok()
    }

    /// Tells later clones which pages one has written until it was ready. The first one that tells is heard.
    ///
    /// # Errors
    /// The file cannot be made, which costs later clones a little time.
    pub fn record_working_set(&self, set: &WorkingSet) -> Result<(), StoreError> {
        let path = self.path.join(working_set::FILE_NAME);
        let written = set.write(self.dir.as_fd());
        Ok(written.map_err(FileError::on("write", &path))?)
    }

    /// The disks, in the order of their slots.
    #[must_use]
    pub fn disks(&self) -> &[TemplateDisk] {
        &self.disks
    }

    /// Compares every byte of the disks with their checksums.
    ///
    /// # Errors
    /// [`StoreError::DiskChanged`] for the first that differs.
    pub fn verify_disks(&self) -> Result<(), StoreError> {
        self.disks.iter().try_for_each(TemplateDisk::verify)
    }

    /// How the memory files were recognised.
    #[must_use]
    pub fn memory_check(&self) -> MemoryCheck {
        if self.memory.have_published_times() {
            MemoryCheck::Stamp
        } else {
            MemoryCheck::Content
        }
    }

    /// Compares every byte of the memory with its digests.
    ///
    /// # Errors
    /// [`MemoryError::Changed`] with the first place that differs.
    pub fn verify_memory(&self) -> Result<(), StoreError> {
        match self.memory.damaged_chunks(&self.digests()?)?.first() {
            None => Ok(()),
            Some(&offset) => Err(MemoryError::Changed {
                path: self.memory.suspect(offset).to_path_buf(),
                offset,
            }
            .into()),
        }
    }

    /// Whether the memory files still have the lengths and modification times they had when the
    /// template was acquired; one system call for each.
    ///
    /// # Errors
    /// [`StoreError::File`] when one cannot be inspected.
    pub fn is_memory_untouched(&self) -> Result<bool, StoreError> {
        Ok(self.memory.are_untouched()?)
    }

    /// The digests of the memory.
    pub(super) fn digests(&self) -> Result<ChunkDigests, StoreError> {
        read_digests(&self.dir, &self.path, &self.manifest)
    }

    /// Ends its hold on the directory by handing that on.
    pub(super) fn into_directory(self) -> OwnedFd {
        self.dir
    }
}

/// Opens a template's directory and takes a clone's lock on it.
pub(super) fn open_locked(path: &Path, name: &TemplateName) -> Result<OwnedFd, StoreError> {
    loop {
        let dir = open_directory(path, name)?;
        lock_shared(&dir, path, name)?;
        // Between the two another directory may have been put in its place: a flattened one, or none.
        if lock::is_still_at(&dir, path)? {
            return Ok(dir);
        }
    }
}

/// Reads the manifest of a template without a lock on it.
pub(super) fn read_current_manifest(
    path: &Path,
    name: &TemplateName,
) -> Result<(OwnedFd, Manifest), StoreError> {
    loop {
        let dir = open_directory(path, name)?;
        match read_manifest(&dir, path, name) {
            // Another one may be in its place by now.
            Err(StoreError::NotFound { .. }) => {}
            other => return other.map(|manifest| (dir, manifest)),
        }
    }
}

/// Opens a template's directory, where there is one.
pub(super) fn open_directory(path: &Path, name: &TemplateName) -> Result<OwnedFd, StoreError> {
    files::open_directory(path).map_err(|error| match error.errno() {
        Some(Errno::NOENT) => not_found(path, name),
        _ => error.into(),
    })
}

fn lock_shared(dir: &OwnedFd, path: &Path, name: &TemplateName) -> Result<(), StoreError> {
    if lock::try_lock(dir, path, FlockOperation::NonBlockingLockShared)? {
        Ok(())
    } else {
        Err(StoreError::Deleting { name: name.clone() })
    }
}

pub(super) fn read_manifest(
    dir: &OwnedFd,
    path: &Path,
    name: &TemplateName,
) -> Result<Manifest, StoreError> {
    let file = path.join(manifest::FILE_NAME);
    let error = match Manifest::read_at(dir.as_fd(), &file) {
        Ok(manifest) => return Ok(manifest),
        Err(error) => error,
    };
    // The directory may have been deleted after it was opened: then nothing is damaged.
    let is_gone = matches!(&error, ManifestError::File(e) if e.errno() == Some(Errno::NOENT))
        && !lock::is_still_at(dir, path)?;
    Err(if is_gone {
        not_found(path, name)
    } else {
        error.into()
    })
}

pub(super) fn read_digests(
    dir: &OwnedFd,
    path: &Path,
    manifest: &Manifest,
) -> Result<ChunkDigests, StoreError> {
    let file = read_state(dir, path, &manifest.files.digests, memory::DIGESTS_NAME)?;
    Ok(ChunkDigests::decode(&file)?)
}

/// Reads a file in the state format and makes sure that it is the one the manifest means.
pub(super) fn read_state(
    dir: &OwnedFd,
    path: &Path,
    record: &FileRecord,
    file_name: &str,
) -> Result<StateFile, StoreError> {
    let file_path = path.join(file_name);
    let bytes = files::read_regular_at(
        dir.as_fd(),
        Path::new(file_name),
        &file_path,
        state::MAX_FILE_BYTES,
    )
    .map_err(state::StateError::from)?;
    let file = StateFile::parse(bytes, &file_path)?;
    if (file.size_bytes(), file.checksum()) == (record.size, record.checksum) {
        Ok(file)
    } else {
        Err(StoreError::Foreign {
            path: file_path,
            found_size: file.size_bytes(),
            found: file.checksum(),
            expected_size: record.size,
            expected: record.checksum,
        })
    }
}

pub(super) fn not_found(path: &Path, name: &TemplateName) -> StoreError {
    StoreError::NotFound {
        name: name.clone(),
        store: path.parent().unwrap_or(path).to_path_buf(),
    }
}
