//! A template that is being made: invisible until it is whole.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{fchmod, fstat, fstatvfs};
use uuid::Uuid;

use super::claim::ClaimedDirectory;
use super::disk_files::PendingDisks;
use super::inheritance::{Inheritance, Start};
use super::memory_files::{modified, set_modified};
use super::template::{STATE_NAME, Template};
use super::{Store, StoreError, remove};
use crate::error::FileError;
use crate::files;
use crate::manifest::{
    self, FileRecord, FileRecords, LayerRecords, Manifest, MemoryRecord, TemplateSpec,
};
use crate::memory::{self, LayerFile, LayerMap, MemoryError, MemoryLayers, OwnMemory, Wanted};
use crate::name::TemplateName;
use crate::state::{Arch, StateFile};

/// A template that is being made. Dropping it removes every trace.
#[derive(Debug)]
pub struct PendingTemplate {
    store: Store,
    name: TemplateName,
    memory: Arc<File>,
    memory_bytes: u64,
    inheritance: Option<Inheritance>,
    disks: PendingDisks,
    directory: ClaimedDirectory,
}

impl PendingTemplate {
    pub(super) fn claim(
        store: &Store,
        name: &TemplateName,
        memory_bytes: u64,
    ) -> Result<Self, StoreError> {
        remove::sweep_for_tidiness(store);
        Self::make(
            store,
            name,
            memory_bytes,
            ClaimedDirectory::claim(store, name)?,
        )
    }

    /// Another form of a template, to be put into its place.
    pub(super) fn beside(store: &Store, template: &Template) -> Result<Self, StoreError> {
        let name = template.name();
        let directory = ClaimedDirectory::claim_beside(store, name)?;
        Self::make(store, name, template.memory().length(), directory)
    }

    fn make(
        store: &Store,
        name: &TemplateName,
        memory_bytes: u64,
        directory: ClaimedDirectory,
    ) -> Result<Self, StoreError> {
        let memory_path = directory.path().join(memory::FILE_NAME);
        let memory = memory::create_at(directory.fd().as_fd(), &memory_path, memory_bytes)?;
        Ok(Self {
            store: store.clone(),
            name: name.clone(),
            memory: Arc::new(memory),
            memory_bytes,
            inheritance: None,
            disks: PendingDisks::default(),
            directory,
        })
    }

    /// The guest's memory, open for reading and writing, without data yet. Map it `MAP_SHARED`.
    #[must_use]
    pub fn memory(&self) -> &File {
        &self.memory
    }

    /// Starts with the memory of `parent`, whose clone the guest runs in: as a layer above it where that is
    /// possible, with a copy otherwise. [`Self::divide`] has to follow, when the guest has stopped.
    ///
    /// # Errors
    /// [`StoreError::File`] when it can be neither linked nor copied, for example because the disk is full,
    /// or the copy is not `wanted` any more.
    pub fn start_from(
        &mut self,
        parent: &Template,
        wanted: Wanted<'_>,
    ) -> Result<Start, StoreError> {
        let (dir, path) = (self.directory.fd(), self.directory.path());
        let (inheritance, start) = Inheritance::of(parent, dir, path, &self.memory, wanted)?;
        self.inheritance = Some(inheritance);
        Ok(start)
    }

    /// Makes the template's next disk: it has `length` bytes, and starts with what is in `from`, if anything. The file
    /// is open for reading and writing, and belongs to the template from [`Self::publish`] on.
    ///
    /// # Errors
    /// [`StoreError::File`] when it cannot be written, for example because the disk is full, or is
    /// not `wanted` any more.
    pub fn add_disk(
        &mut self,
        from: Option<&File>,
        length: u64,
        read_only: bool,
        wanted: Wanted<'_>,
    ) -> Result<Arc<File>, StoreError> {
        let (dir, path) = (self.directory.fd(), self.directory.path());
        self.disks.add(dir, path, from, length, read_only, wanted)
    }

    /// Makes the template's next disk a slot that a clone may fill.
    pub fn add_disk_slot(&mut self) {
        self.disks.add_empty();
    }

    /// Divides the memory into what stays the parent's and what is this template's own. Returns the ranges of
    /// the memory file to which the guest's memory has to be copied; the file is empty there, so zeros can be
    /// left out.
    ///
    /// # Errors
    /// [`StoreError::File`] when the file cannot be written.
    pub fn divide(&mut self, own: &OwnMemory) -> Result<Vec<Range<u64>>, StoreError> {
        let path = self.memory_path();
        match &mut self.inheritance {
            Some(inheritance) => inheritance.divide(own, &self.memory, &path, self.memory_bytes),
            None => Ok(own.written.clone()),
        }
    }

    /// Where the guest's RAM is while the template is made, for messages.
    #[must_use]
    pub fn memory_path(&self) -> PathBuf {
        self.file_path(memory::FILE_NAME)
    }

    /// Bytes that are left on the disk for this process. When it is full, a write of the guest to
    /// memory it had not used before ends in EFAULT or SIGBUS, and this tells why.
    ///
    /// # Errors
    /// [`StoreError::File`] when the file system does not tell.
    pub fn disk_bytes_left(&self) -> Result<u64, StoreError> {
        let disk = fstatvfs(self.directory.fd())
            .map_err(FileError::on("inspect", self.directory.path()))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Publishes the template. The guest must be stopped and must not run again: its RAM is the
    /// template's from here on. Unmap it before: holes are punched into the file, and each costs
    /// a TLB flush where it is mapped.
    ///
    /// # Errors
    /// [`StoreError`] for the first thing that failed; nothing of the template is left then.
    pub fn publish(mut self, spec: TemplateSpec, state: Vec<u8>) -> Result<Template, StoreError> {
        let state = self.write_checked(STATE_NAME, state)?;
        let files = self.seal_memory(state)?;
        let manifest = Manifest {
            name: self.name.clone(),
            uuid: Uuid::new_v4(),
            created: Timestamp::now(),
            arch: Arch::CURRENT,
            spec,
            files,
        };
        self.write_manifest(&manifest)?;
        self.directory.publish()?;

        let path = self.store.template_path(&self.name);
        Template::load(self.directory.keep()?, &path, &self.name)
    }

    /// Fills it with all that is in a template, in one memory file, and hands on the directory.
    pub(super) fn copy_of(
        mut self,
        template: &Template,
    ) -> Result<(ClaimedDirectory, Manifest), StoreError> {
        let path = self.memory_path();
        memory::inherit(template.memory(), &self.memory, &path, &|| true)?;
        let memory = self.whole_memory();
        // What is damaged does not take the place of what may be put in order yet.
        let digests = template.digests()?;
        if let Some(&offset) = memory::damaged_chunks(&memory, &digests)?.first() {
            return Err(MemoryError::Changed { path, offset }.into());
        }
        let (dir, to) = (self.directory.fd(), self.directory.path());
        self.disks.add_all_of(dir, to, template)?;
        let mut manifest = template.manifest().clone();
        manifest.files = FileRecords {
            state: self.write_checked(STATE_NAME, template.state().as_bytes().to_vec())?,
            memory: self.finish_memory()?,
            digests: self.write_digests(&digests)?,
            layers: None,
            disks: self.disks.finish()?,
        };
        self.write_manifest(&manifest)?;
        Ok((self.directory, manifest))
    }

    fn seal_memory(&mut self, state: FileRecord) -> Result<FileRecords, StoreError> {
        let path = self.memory_path();
        let stat = fstat(&self.memory).map_err(FileError::on("inspect", &path))?;
        let found = stat.st_size.cast_unsigned();
        if found != self.memory_bytes {
            return Err(MemoryError::Length {
                path,
                found,
                expected: self.memory_bytes,
            }
            .into());
        }
        let memory = self.whole_memory();
        let known = self.inheritance.as_mut();
        let known = known.and_then(|inheritance| inheritance.known(self.memory_bytes));
        let digests = memory::seal(&memory, known.as_ref())?;
        Ok(FileRecords {
            state,
            memory: self.finish_memory()?,
            digests: self.write_digests(&digests)?,
            layers: self.write_layers(&memory)?,
            disks: self.disks.finish()?,
        })
    }

    /// The memory with all its layers.
    fn whole_memory(&self) -> MemoryLayers {
        let own = LayerFile {
            file: self.memory.clone(),
            path: self.memory_path(),
        };
        match &self.inheritance {
            Some(inheritance) => inheritance.memory(own, self.memory_bytes),
            None => MemoryLayers::new(vec![own], LayerMap::plain(self.memory_bytes)),
        }
    }

    fn write_layers(&self, memory: &MemoryLayers) -> Result<Option<LayerRecords>, StoreError> {
        let Some(inheritance) = self.inheritance.as_ref().filter(|_| memory.count() > 1) else {
            return Ok(None);
        };
        let map = memory.map().encode().map_err(MemoryError::from)?;
        Ok(Some(LayerRecords {
            map: self.write_checked(memory::LAYERS_NAME, map)?,
            below: inheritance.below(),
        }))
    }

    fn write_digests(&self, digests: &memory::ChunkDigests) -> Result<FileRecord, StoreError> {
        let digests = digests.encode().map_err(MemoryError::from)?;
        self.write_checked(memory::DIGESTS_NAME, digests)
    }

    /// Takes the write permission from the memory file, gives it the modification time it will be
    /// recognised by, and brings it to the disk.
    fn finish_memory(&self) -> Result<MemoryRecord, FileError> {
        let (memory, path) = (&self.memory, &self.memory_path());
        fchmod(memory, files::MODE_PUBLISHED).map_err(FileError::on("set the mode of", path))?;
        // Before the time is set: writing back what was stored through a mapping may change it.
        memory.sync_all().map_err(FileError::on("sync", path))?;
        let now = Timestamp::now();
        set_modified(memory, now).map_err(FileError::on("set the time of", path))?;
        memory.sync_all().map_err(FileError::on("sync", path))?;
        // Not every file system keeps nanoseconds, and some find the blocks at the sync: what it kept is
        // what counts.
        let stat = fstat(memory).map_err(FileError::on("inspect", path))?;
        Ok(MemoryRecord {
            size: self.memory_bytes,
            allocated: files::allocated_bytes(&stat),
            modified: modified(&stat).unwrap_or(now),
        })
    }

    /// Writes a file in the state format, which is read back first: what no reader would take is
    /// not published.
    fn write_checked(&self, name: &str, bytes: Vec<u8>) -> Result<FileRecord, StoreError> {
        let path = self.file_path(name);
        let file = StateFile::parse(bytes, &path)?;
        let dir = self.directory.fd().as_fd();
        files::write_published_at(dir, name, &path, file.as_bytes())?;
        Ok(FileRecord {
            size: file.size_bytes(),
            checksum: file.checksum(),
        })
    }

    /// Writes the last of the files, and brings the directory to the disk.
    fn write_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let path = self.file_path(manifest::FILE_NAME);
        let text = manifest.encode().map_err(|source| StoreError::Encode {
            name: self.name.clone(),
            source,
        })?;
        // As with the state: what no reader would take is not published.
        Manifest::parse(text.as_bytes(), &path)?;
        let dir = self.directory.fd().as_fd();
        files::write_published_at(dir, manifest::FILE_NAME, &path, text.as_bytes())?;
        files::sync_directory(self.directory.fd(), self.directory.path())?;
        Ok(())
    }

    fn file_path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
