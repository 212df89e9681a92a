//! The disk files of a template: made while it is pending, and open once it is published.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{fchmod, fstat, ftruncate};

use super::memory_files::{modified, set_modified};
use super::{StoreError, Template};
use crate::disk::{self, DiskContent, DiskRecord};
use crate::error::FileError;
use crate::files;
use crate::memory::Wanted;

/// A disk of a published template, open for reading only.
#[derive(Debug, Clone)]
pub struct TemplateDisk {
    /// What the manifest says.
    pub record: DiskRecord,
    /// Its file, of the length in the record; nothing for an empty slot.
    pub file: Option<Arc<File>>,
    path: PathBuf,
    /// Its modification time when it was opened.
    opened: Option<Timestamp>,
}

impl TemplateDisk {
    /// Whether its file has the modification time it was published with.
    pub(super) fn has_published_time(&self) -> bool {
        let content = self.record.content.as_ref();
        content.is_none_or(|content| self.opened == Some(content.modified))
    }

    /// Compares its content with the checksum.
    pub(super) fn verify(&self) -> Result<(), StoreError> {
        let (Some(content), Some(file)) = (&self.record.content, &self.file) else {
            return Ok(());
        };
        let found = disk::digest(file, &self.path, content.size)?;
        if found == content.checksum {
            return Ok(());
        }
        Err(StoreError::DiskChanged {
            path: self.path.clone(),
            found,
            expected: content.checksum,
        })
    }

    /// Gives its file the time it was published with; false where that is not allowed.
    pub(super) fn restamp(&self) -> bool {
        let (Some(content), Some(file)) = (&self.record.content, &self.file) else {
            return true;
        };
        set_modified(file, content.modified).is_ok()
    }
}

/// Opens a disk of a template without reading it.
pub(super) fn open(
    dir: &OwnedFd,
    template: &Path,
    number: usize,
    record: &DiskRecord,
) -> Result<TemplateDisk, StoreError> {
    let name = disk::file_name(number);
    let path = template.join(&name);
    let mut disk = TemplateDisk {
        record: record.clone(),
        file: None,
        path,
        opened: None,
    };
    let Some(content) = &record.content else {
        return Ok(disk);
    };
    let (file, stat) = files::open_regular_at(dir.as_fd(), Path::new(&name), &disk.path)?;
    let found = stat.st_size.cast_unsigned();
    if found != content.size {
        return Err(StoreError::DiskLength {
            path: disk.path,
            found,
            expected: content.size,
        });
    }
    disk.opened = modified(&stat);
    disk.file = Some(Arc::new(file));
    Ok(disk)
}

/// The disks of a template that is being made.
#[derive(Debug, Default)]
pub(super) struct PendingDisks(Vec<PendingDisk>);

#[derive(Debug)]
struct PendingDisk {
    read_only: bool,
    /// File, its place and its length.
    content: Option<(Arc<File>, PathBuf, u64)>,
}

impl PendingDisks {
    /// Reserves the next slot.
    pub(super) fn add_empty(&mut self) {
        self.0.push(PendingDisk {
            read_only: false,
            content: None,
        });
    }

    /// Makes the next disk, which starts as `from`, or empty.
    pub(super) fn add(
        &mut self,
        dir: &OwnedFd,
        path: &Path,
        from: Option<&File>,
        length: u64,
        read_only: bool,
        wanted: Wanted<'_>,
    ) -> Result<Arc<File>, StoreError> {
        let name = disk::file_name(self.0.len());
        let path = path.join(&name);
        let file = files::create_at(dir.as_fd(), &name, &path)?;
        ftruncate(&file, length).map_err(FileError::on("set the length of", &path))?;
        if let Some(from) = from {
            disk::copy(from, &file, length, wanted).map_err(FileError::on("copy into", &path))?;
        }
        let file = Arc::new(file);
        self.0.push(PendingDisk {
            read_only,
            content: Some((file.clone(), path, length)),
        });
        Ok(file)
    }

    /// Makes all disks of a template again.
    pub(super) fn add_all_of(
        &mut self,
        dir: &OwnedFd,
        path: &Path,
        template: &Template,
    ) -> Result<(), StoreError> {
        for disk in template.disks() {
            match (&disk.file, &disk.record.content) {
                (Some(file), Some(content)) => {
                    self.add(
                        dir,
                        path,
                        Some(file),
                        content.size,
                        disk.record.read_only,
                        &|| true,
                    )?;
                }
                _ => self.add_empty(),
            }
        }
        Ok(())
    }

    /// Takes the write permission from the files and brings them to the disk. Nobody writes to them
    /// any more.
    pub(super) fn finish(&self) -> Result<Vec<DiskRecord>, FileError> {
        self.0.iter().map(PendingDisk::finish).collect()
    }
}

impl PendingDisk {
    fn finish(&self) -> Result<DiskRecord, FileError> {
        let Some((file, path, length)) = &self.content else {
            return Ok(DiskRecord {
                read_only: self.read_only,
                content: None,
            });
        };
        let checksum = disk::digest(file, path, *length)?;
        fchmod(file, files::MODE_PUBLISHED).map_err(FileError::on("set the mode of", path))?;
        file.sync_all().map_err(FileError::on("sync", path))?;
        let now = Timestamp::now();
        set_modified(file, now).map_err(FileError::on("set the time of", path))?;
        file.sync_all().map_err(FileError::on("sync", path))?;
        let stat = fstat(file).map_err(FileError::on("inspect", path))?;
        Ok(DiskRecord {
            read_only: self.read_only,
            content: Some(DiskContent {
                size: *length,
                allocated: files::allocated_bytes(&stat),
                // Not every file system keeps nanoseconds.
                modified: modified(&stat).unwrap_or(now),
                checksum,
            }),
        })
    }
}
