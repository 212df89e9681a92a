//! The files that a template's memory is made of.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::extents;
use super::layer_map::{Layer, LayerMap};
use crate::error::FileError;

/// A guest's memory as one or more files, each of which has some of its pages.
#[derive(Debug)]
pub struct MemoryLayers {
    files: Vec<LayerFile>,
    map: LayerMap,
}

/// A file of pages, at the places that they have in the guest's memory.
#[derive(Clone, Debug)]
pub struct LayerFile {
    /// Open for reading only.
    pub file: Arc<File>,
    /// Where it was opened, for messages.
    pub path: PathBuf,
}

impl MemoryLayers {
    /// One file that holds all of a memory.
    ///
    /// # Errors
    /// Its length cannot be told.
    pub fn plain(file: File, path: &Path) -> io::Result<Self> {
        let map = LayerMap::plain(file.metadata()?.len());
        let file = Arc::new(file);
        let path = path.to_path_buf();
        Ok(Self::new(vec![LayerFile { file, path }], map))
    }

    /// `files` are the layers of the map, which leads behind the end of none.
    pub(crate) fn new(files: Vec<LayerFile>, map: LayerMap) -> Self {
        debug_assert_eq!(files.len(), map.layers());
        Self { files, map }
    }

    /// Bytes of the memory.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.map.length()
    }

    /// How many files it is made of.
    #[must_use]
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Where each page is.
    #[must_use]
    pub fn map(&self) -> &LayerMap {
        &self.map
    }

    /// The file below all others: every page that [`Self::overlays`] does not name is in it.
    #[must_use]
    pub fn deepest(&self) -> &Arc<File> {
        &self.file(self.map.deepest()).file
    }

    /// The runs of pages in `range`, ascending, with their file.
    pub fn runs(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, &Arc<File>)> {
        let runs = self.map.runs_in(range);
        runs.map(|(run, layer)| (run, &self.file(layer).file))
    }

    /// The runs of pages in `range` that are not in the deepest file, ascending, with their file.
    pub fn overlays(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, &Arc<File>)> {
        let deepest = self.map.deepest();
        let runs = self.map.runs_in(range);
        runs.filter(move |(_, layer)| *layer != deepest)
            .map(|(run, layer)| (run, &self.file(layer).file))
    }

    /// Bytes of a range, which is of whole pages, where the files have data and no holes; fewer while somebody
    /// exchanges pages ([`Self::exchange_pages`]).
    ///
    /// # Errors
    /// A file cannot be looked at.
    pub fn data_bytes(&self, range: &Range<u64>) -> Result<u64, FileError> {
        let mut bytes = 0;
        for (run, layer) in self.map.runs_in(range) {
            let file = self.file(layer);
            let data = extents::data_in(&file.file, &file.path, run)?;
            bytes += data.iter().map(|part| part.end - part.start).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Reads the memory at `offset`.
    ///
    /// # Errors
    /// A file cannot be read, or the memory ends before.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.length() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = buffer;
        for (run, layer) in self.map.runs_in(&(offset..end)) {
            // Not longer than the buffer.
            let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at_mut(length);
            self.file(layer).file.read_exact_at(part, run.start)?;
            rest = behind;
        }
        Ok(())
    }

    pub(crate) fn file(&self, layer: Layer) -> &LayerFile {
        &self.files[layer.index()]
    }

    /// The files, the template's own first.
    #[must_use]
    pub fn files(&self) -> &[LayerFile] {
        &self.files
    }
}
