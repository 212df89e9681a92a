//! The memory files of a published template, while they are open.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{Stat, Timespec, Timestamps, UTIME_OMIT, fstat, futimens};
use rustix::io::Errno;

use super::{StoreError, template};
use crate::error::FileError;
use crate::manifest::{FileRecords, Manifest, MemoryRecord};
use crate::memory::{
    self, CHUNK_SIZE, ChunkDigests, LAYERS_NAME, Layer, LayerFile, LayerMap, MemoryError,
    MemoryLayers,
};

/// Memory files of the right kind and length, open for reading only.
#[derive(Debug)]
pub(super) struct MemoryFiles {
    layers: Arc<MemoryLayers>,
    /// One for each layer.
    stamps: Vec<Stamp>,
}

/// What a memory file is recognised by.
#[derive(Debug)]
struct Stamp {
    published: MemoryRecord,
    /// Its modification time when it was opened.
    opened: Option<Timestamp>,
}

impl Stamp {
    fn is_published(&self) -> bool {
        self.opened == Some(self.published.modified)
    }

    /// Whether a file is as it was when it was opened. Its time may also be the published one, which a
    /// verify gives it back.
    fn is_of(&self, found: &Stat) -> bool {
        let time = modified(found);
        let is_known = time == self.opened || time == Some(self.published.modified);
        found.st_size.cast_unsigned() == self.published.size && is_known
    }
}

impl MemoryFiles {
    pub(super) fn open(
        dir: &OwnedFd,
        template: &Path,
        manifest: &Manifest,
    ) -> Result<Self, StoreError> {
        let map = read_map(dir, template, manifest)?;
        let (mut layers, mut stamps) = (Vec::new(), Vec::new());
        for (layer, record) in memory_records(&manifest.files) {
            let (file, stamp) = open_layer(dir, template, layer, record)?;
            layers.push(file);
            stamps.push(stamp);
        }
        Ok(Self {
            layers: Arc::new(MemoryLayers::new(layers, map)),
            stamps,
        })
    }

    pub(super) fn layers(&self) -> &Arc<MemoryLayers> {
        &self.layers
    }

    /// Whether all had the modification times they were published with.
    pub(super) fn have_published_times(&self) -> bool {
        self.stamps.iter().all(Stamp::is_published)
    }

    /// Whether their lengths and modification times are still what they were when they were opened.
    pub(super) fn are_untouched(&self) -> Result<bool, FileError> {
        for (layer, stamp) in self.layers.files().iter().zip(&self.stamps) {
            let stat = fstat(&layer.file).map_err(FileError::on("inspect", &layer.path))?;
            if !stamp.is_of(&stat) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Offsets in bytes of the chunks that are not as they were published.
    pub(super) fn damaged_chunks(&self, digests: &ChunkDigests) -> Result<Vec<u64>, MemoryError> {
        memory::damaged_chunks(&self.layers, digests)
    }

    /// The file in which a damaged chunk is damaged, as far as that can be told: of those that it comes from
    /// one that was touched, or else the nearest.
    pub(super) fn suspect(&self, offset: u64) -> &Path {
        let chunk = offset..offset.saturating_add(CHUNK_SIZE);
        let mut layers: Vec<_> = self
            .layers
            .map()
            .runs_in(&chunk)
            .map(|(_, layer)| layer)
            .collect();
        layers.sort_unstable();
        let touched = |layer: &&Layer| !self.stamps[layer.index()].is_published();
        let suspect = layers.iter().find(touched).or(layers.first());
        let suspect = suspect.copied().unwrap_or(Layer::OWN);
        &self.layers.file(suspect).path
    }

    /// Gives them the modification times they were published with; false where that is not allowed.
    pub(super) fn restamp(&self) -> bool {
        let mut files = self.layers.files().iter().zip(&self.stamps);
        files.all(|(layer, stamp)| {
            stamp.is_published() || set_modified(&layer.file, stamp.published.modified).is_ok()
        })
    }
}

/// The records of all memory files, the template's own first.
pub(super) fn memory_records(files: &FileRecords) -> impl Iterator<Item = (Layer, &MemoryRecord)> {
    let below = files.below().iter().map(|layer| &layer.file);
    let records = std::iter::once(&files.memory).chain(below);
    Layer::all(files.layer_count()).zip(records)
}

/// Reads where each page of the memory is.
pub(super) fn read_map(
    dir: &OwnedFd,
    template: &Path,
    manifest: &Manifest,
) -> Result<LayerMap, StoreError> {
    let Some(layers) = &manifest.files.layers else {
        return Ok(LayerMap::plain(manifest.files.memory.size));
    };
    let file = template::read_state(dir, template, &layers.map, LAYERS_NAME)?;
    let lengths: Vec<_> = memory_records(&manifest.files)
        .map(|(_, record)| record.size)
        .collect();
    Ok(LayerMap::decode(&file, &lengths)?)
}

/// Checks one memory file without reading it.
pub(super) fn check_layer(
    dir: &OwnedFd,
    template: &Path,
    layer: Layer,
    record: &MemoryRecord,
) -> Result<(), MemoryError> {
    open_layer(dir, template, layer, record).map(drop)
}

fn open_layer(
    dir: &OwnedFd,
    template: &Path,
    layer: Layer,
    record: &MemoryRecord,
) -> Result<(LayerFile, Stamp), MemoryError> {
    let name = layer.file_name();
    let path: PathBuf = template.join(&name);
    let (file, stat) = memory::open_at(dir.as_fd(), &name, &path, record.size)?;
    let stamp = Stamp {
        published: record.clone(),
        opened: modified(&stat),
    };
    let file = Arc::new(file);
    Ok((LayerFile { file, path }, stamp))
}

/// A file's modification time; none when it is out of any calendar's range.
pub(super) fn modified(stat: &Stat) -> Option<Timestamp> {
    Timestamp::new(stat.st_mtime, i32::try_from(stat.st_mtime_nsec).ok()?).ok()
}

/// Sets a file's modification time.
pub(super) fn set_modified(file: &File, time: Timestamp) -> Result<(), Errno> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: time.as_second(),
            tv_nsec: time.subsec_nanosecond().into(),
        },
    };
    futimens(file, &times)
}
