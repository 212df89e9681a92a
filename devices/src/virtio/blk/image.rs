//! What a disk's bytes are made of: one file, or an overlay above a file that does not change.

use super::clusters::{CLUSTER, Clusters, around};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a sector, the unit of a request.
pub const SECTOR: u64 = 512;

/// The content of a disk. A clone of it has the same files.
#[derive(Debug, Clone)]
pub struct Image {
    length: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    /// A slot without a disk.
    Nothing,
    /// All in one file.
    Raw(Arc<File>),
    /// What was written is in `own`, all other bytes are in `base`.
    Overlay {
        base: Arc<File>,
        own: Arc<File>,
        clusters: Clusters,
    },
}

/// A part of a disk, and the file that it is in at the same offset.
#[derive(Debug)]
pub(super) struct Extent {
    pub file: Arc<File>,
    pub bytes: Range<u64>,
}

impl Image {
    /// No disk.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            length: 0,
            content: Content::Nothing,
        }
    }

    /// A disk of `length` bytes, a multiple of [`SECTOR`], that is all in one file.
    #[must_use]
    pub fn raw(file: Arc<File>, length: u64) -> Self {
        Self {
            length,
            content: Content::Raw(file),
        }
    }

    /// A disk of `length` bytes that starts as `base`, and whose changes go to the empty file `own`.
    #[must_use]
    pub fn overlay(base: Arc<File>, own: Arc<File>, length: u64) -> Self {
        Self {
            length,
            content: Content::Overlay {
                base,
                own,
                clusters: Clusters::none(length),
            },
        }
    }

    /// Length in bytes; 0 when there is no disk.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file that is written to.
    #[must_use]
    pub fn file(&self) -> Option<&Arc<File>> {
        match &self.content {
            Content::Nothing => None,
            Content::Raw(file) | Content::Overlay { own: file, .. } => Some(file),
        }
    }

    /// The file below an overlay.
    #[must_use]
    pub fn base(&self) -> Option<&Arc<File>> {
        match &self.content {
            Content::Overlay { base, .. } => Some(base),
            Content::Nothing | Content::Raw(_) => None,
        }
    }

    /// What differs from the file below, in bytes, in order; `None` when there is none below.
    #[must_use]
    pub fn changed(&self) -> Option<Vec<Range<u64>>> {
        let Content::Overlay { clusters, .. } = &self.content else {
            return None;
        };
        let mut ranges = clusters.ranges();
        if let Some(last) = ranges.last_mut() {
            last.end = last.end.min(self.length);
        }
        Some(ranges)
    }

    /// Where bytes are to be read.
    pub(super) fn extents(&self, bytes: Range<u64>) -> Vec<Extent> {
        match &self.content {
            Content::Nothing => Vec::new(),
            Content::Raw(file) => vec![Extent {
                file: file.clone(),
                bytes,
            }],
            Content::Overlay {
                base,
                own,
                clusters,
            } => {
                let extent = |(bytes, is_own)| Extent {
                    file: if is_own { own.clone() } else { base.clone() },
                    bytes,
                };
                clusters.cut(bytes).into_iter().map(extent).collect()
            }
        }
    }

    /// What has to be copied from below before `bytes` can be written: the clusters at its ends
    /// that it does not cover.
    pub(super) fn to_copy(&self, bytes: &Range<u64>) -> Vec<Extent> {
        let Content::Overlay { base, clusters, .. } = &self.content else {
            return Vec::new();
        };
        let touched = around(bytes);
        let mut ends = vec![touched.start, touched.end.saturating_sub(1)];
        ends.dedup();
        let whole = |cluster: u64| cluster * CLUSTER..((cluster + 1) * CLUSTER).min(self.length);
        let is_cut = |part: &Range<u64>| part.start < bytes.start || part.end > bytes.end;
        let missing = ends.into_iter().filter(|cluster| !clusters.has(*cluster));
        let extent = |bytes| Extent {
            file: base.clone(),
            bytes,
        };
        missing.map(whole).filter(is_cut).map(extent).collect()
    }

    /// Whether two changes at these bytes get in each other's way.
    pub(super) fn collide(&self, one: &Range<u64>, other: &Range<u64>) -> bool {
        let (one, other) = (around(one), around(other));
        matches!(self.content, Content::Overlay { .. })
            && one.start < other.end
            && other.start < one.end
    }

    /// These bytes are in the file that is written to now, with all of the clusters they touch.
    pub(super) fn was_written(&mut self, bytes: &Range<u64>) {
        if let Content::Overlay { clusters, .. } = &mut self.content {
            clusters.add(around(bytes));
        }
    }
}
