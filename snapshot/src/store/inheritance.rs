//! What a template that is being made has from the template whose clone its VM is.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rangemap::RangeSet;
use rustix::fs::{AtFlags, CWD, linkat, unlinkat};
use rustix::io::Errno;

use super::{StoreError, Template};
use crate::error::FileError;
use crate::manifest::LayerRecord;
use crate::memory::{
    self, Known, Layer, LayerFile, LayerMap, MAX_LAYERS, MemoryLayers, OwnMemory, OwnPlan, Wanted,
};

/// How a new template starts with its parent's memory.
#[derive(Debug)]
pub enum Start {
    /// As a layer above those of its parent; nothing was copied.
    Layer {
        /// How many layers it is made of, its own included.
        layers: usize,
    },
    /// With a copy.
    Copy(CopyReason),
}

/// Why a template does not become a layer above its parent.
#[derive(Debug)]
pub enum CopyReason {
    /// It would have too many layers.
    Deep,
    /// The file system does not link the parent's files.
    NoLinks(io::Error),
}

impl fmt::Display for CopyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deep => write!(
                f,
                "its template has {MAX_LAYERS} layers, which is the most there can be"
            ),
            Self::NoLinks(error) => write!(f, "its template's files cannot be linked: {error}"),
        }
    }
}

/// What there is of a parent.
#[derive(Debug)]
pub(super) struct Inheritance {
    /// The parent's layers, where they were linked; nothing when its memory was copied.
    below: Vec<(LayerRecord, LayerFile)>,
    map: LayerMap,
    /// The parent's digests; none when they are damaged: then all are taken anew.
    digests: Option<memory::ChunkDigests>,
    /// What is not the parent's.
    own: RangeSet<u64>,
}

impl Inheritance {
    /// Links the parent's memory files into `dir`, or copies what is in them to `memory`.
    pub(super) fn of(
        parent: &Template,
        dir: &OwnedFd,
        path: &Path,
        memory: &File,
        wanted: Wanted<'_>,
    ) -> Result<(Self, Start), StoreError> {
        let linked = if parent.memory().count() < MAX_LAYERS {
            link_all(parent.memory(), dir, path)?
        } else {
            Err(CopyReason::Deep)
        };
        let below = match &linked {
            Ok(files) => layer_records(parent).zip(files.iter().cloned()).collect(),
            Err(_) => {
                memory::inherit(
                    parent.memory(),
                    memory,
                    &path.join(memory::FILE_NAME),
                    wanted,
                )?;
                Vec::new()
            }
        };
        let start = match linked {
            Ok(files) => Start::Layer {
                layers: files.len() + 1,
            },
            Err(reason) => Start::Copy(reason),
        };
        let inheritance = Self {
            below,
            map: parent.memory().map().clone(),
            digests: parent.digests().ok(),
            own: RangeSet::new(),
        };
        Ok((inheritance, start))
    }

    /// Decides what becomes the new template's own, and returns what of that has to be copied to `memory`,
    /// which is empty there.
    pub(super) fn divide(
        &mut self,
        own: &OwnMemory,
        memory: &File,
        path: &Path,
        length: u64,
    ) -> Result<Vec<Range<u64>>, StoreError> {
        let plan = if self.below.is_empty() {
            let plan = OwnPlan::exact(own);
            memory::clear(memory, path, plan.own.iter())?;
            plan
        } else {
            OwnPlan::layer(own, &self.map, length)
        };
        self.own = plan.own;
        Ok(plan.copied.into_iter().collect())
    }

    /// The whole memory of the new template.
    pub(super) fn memory(&self, own: LayerFile, length: u64) -> MemoryLayers {
        if self.below.is_empty() {
            return MemoryLayers::new(vec![own], LayerMap::plain(length));
        }
        let below = self.below.iter().map(|(_, file)| file.clone());
        let files = std::iter::once(own).chain(below).collect();
        MemoryLayers::new(files, self.map.child(length, &self.own))
    }

    /// The digests of what was not changed.
    pub(super) fn known(&mut self, length: u64) -> Option<Known> {
        let mut changed = self.own.clone();
        if self.map.length() < length {
            changed.insert(self.map.length()..length);
        }
        Some(Known {
            digests: self.digests.take()?,
            changed,
        })
    }

    /// The records of the layers below the new template's own.
    pub(super) fn below(&self) -> Vec<LayerRecord> {
        self.below
            .iter()
            .map(|(record, _)| record.clone())
            .collect()
    }
}

/// What the parent's layers are to its child, the parent's own first.
fn layer_records(parent: &Template) -> impl Iterator<Item = LayerRecord> {
    let manifest = parent.manifest();
    let own = LayerRecord {
        template: parent.name().clone(),
        uuid: manifest.uuid,
        file: manifest.files.memory.clone(),
    };
    std::iter::once(own).chain(manifest.files.below().iter().cloned())
}

/// Links all files of a memory into a directory as the layers below its own; undone when the file
/// system does not do it.
fn link_all(
    memory: &MemoryLayers,
    dir: &OwnedFd,
    path: &Path,
) -> Result<Result<Vec<LayerFile>, CopyReason>, FileError> {
    let mut linked = Vec::new();
    let names = Layer::all(memory.count() + 1).skip(1).map(Layer::file_name);
    for (layer, name) in memory.files().iter().zip(names) {
        let path = path.join(&name);
        match link(&layer.file, dir, &name) {
            Ok(()) => linked.push(LayerFile {
                file: layer.file.clone(),
                path,
            }),
            Err(errno) if is_refusal(errno) => {
                for file in linked {
                    remove_link(dir, &file)?;
                }
                return Ok(Err(CopyReason::NoLinks(errno.into())));
            }
            Err(errno) => return Err(FileError::on("link", &path)(errno)),
        }
    }
    Ok(Ok(linked))
}

/// By its descriptor: what was opened is linked, whatever its path leads to by now.
fn link(file: &File, dir: &OwnedFd, name: &str) -> Result<(), Errno> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, open, dir, name, AtFlags::SYMLINK_FOLLOW)
}

/// Whether a copy helps: links are not allowed, not known or too many, the new template is on another
/// file system, or the file has been removed.
fn is_refusal(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::PERM
            | Errno::ACCESS
            | Errno::MLINK
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::XDEV
            | Errno::NOENT
    )
}

fn remove_link(dir: &OwnedFd, file: &LayerFile) -> Result<(), FileError> {
    let name = file.path.file_name().map_or(file.path.as_path(), Path::new);
    unlinkat(dir, name, AtFlags::empty()).map_err(FileError::on("remove", &file.path))
}
