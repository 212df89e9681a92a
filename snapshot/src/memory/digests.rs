//! The digests of a memory file's chunks and the file they are kept in.

use serde::{Deserialize, Serialize};

use super::{CHUNK_SIZE, PAGE_SIZE};
use crate::checksum::Checksum;
use crate::state::{StateError, StateFile, StateWriter, WriteError};

/// Name of the file with the digests in a template's directory.
pub const FILE_NAME: &str = "digests";

const SECTION: &str = "memory-chunks";
const VERSION: u16 = 1;

/// The digest of one chunk.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChunkDigest {
    /// Number of the chunk in the file, from 0.
    pub index: u64,
    /// XXH3 over the numbers and hashes of its pages that are not zero.
    pub digest: u64,
}

/// The digests of all chunks that are not zero, ascending.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ChunkDigests {
    page_size: u64,
    chunk_size: u64,
    chunks: Vec<ChunkDigest>,
}

impl ChunkDigests {
    pub(super) fn new(chunks: impl IntoIterator<Item = (u64, Checksum)>) -> Self {
        Self {
            page_size: PAGE_SIZE,
            chunk_size: CHUNK_SIZE,
            chunks: chunks
                .into_iter()
                .map(|(index, digest)| ChunkDigest {
                    index,
                    digest: digest.raw(),
                })
                .collect(),
        }
    }

    /// How many chunks have data.
    #[must_use]
    pub fn count(&self) -> usize {
        self.chunks.len()
    }

    /// These digests, with those of the chunks for which `is_newer` taken from `newer` instead.
    pub(super) fn updated(&self, newer: Self, is_newer: impl Fn(u64) -> bool) -> Self {
        let kept = self.chunks.iter().filter(|chunk| !is_newer(chunk.index));
        let mut chunks: Vec<_> = kept.copied().chain(newer.chunks).collect();
        chunks.sort_unstable_by_key(|chunk| chunk.index);
        Self { chunks, ..newer }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, WriteError> {
        let mut writer = StateWriter::new();
        writer.section(SECTION, VERSION, self)?;
        Ok(writer.finish())
    }

    /// Reads them out of their file.
    ///
    /// # Errors
    /// The section is missing, too new or damaged, or no memory file can have such digests.
    pub fn decode(file: &StateFile) -> Result<Self, StateError> {
        let digests: Self = file.section(SECTION, VERSION..=VERSION)?;
        match digests.fault() {
            None => Ok(digests),
            Some(reason) => Err(StateError::Digests {
                path: file.origin().to_owned(),
                reason,
            }),
        }
    }

    fn fault(&self) -> Option<&'static str> {
        let ascending = |pair: &[ChunkDigest]| pair[0].index < pair[1].index;
        if (self.page_size, self.chunk_size) != (PAGE_SIZE, CHUNK_SIZE) {
            Some("of pages or chunks of another size, expected 4 KiB and 2 MiB")
        } else if !self.chunks.windows(2).all(ascending) {
            Some("that are not in the order of their chunks")
        } else {
            None
        }
    }

    /// Numbers of the chunks that are not the same in both, ascending.
    pub(super) fn differences(&self, other: &Self) -> Vec<u64> {
        let only_in = |from: &Self, not_in: &Self| -> Vec<u64> {
            let known = &not_in.chunks;
            from.chunks
                .iter()
                .filter(|chunk| {
                    known
                        .binary_search_by_key(&chunk.index, |k| k.index)
                        .map_or(true, |at| known[at].digest != chunk.digest)
                })
                .map(|chunk| chunk.index)
                .collect()
        };
        let mut indices = only_in(self, other);
        indices.extend(only_in(other, self));
        indices.sort_unstable();
        indices.dedup();
        indices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digests(chunks: &[(u64, u64)]) -> ChunkDigests {
        ChunkDigests::new(chunks.iter().map(|&(i, d)| (i, Checksum::from_raw(d))))
    }

    #[test]
    fn changed_missing_and_added_chunks_differ() {
        let published = digests(&[(0, 1), (2, 2), (5, 3), (7, 4)]);
        let found = digests(&[(0, 1), (2, 9), (6, 3), (7, 4)]);

        assert_eq!(published.differences(&found), [2, 5, 6]);
        assert_eq!(published.differences(&published), [0_u64; 0]);
    }

    fn refusal(published: &ChunkDigests) -> String {
        let path = std::path::Path::new("digests");
        let file = StateFile::parse(published.encode().unwrap(), path).unwrap();
        ChunkDigests::decode(&file).unwrap_err().to_string()
    }

    #[test]
    fn digests_of_no_memory_file_are_refused() {
        for chunks in [[(3, 1), (2, 1)], [(2, 1), (2, 2)]] {
            let error = refusal(&digests(&chunks));
            assert!(error.contains("not in the order"), "{error}");
        }
        let strange = ChunkDigests {
            page_size: 0,
            ..digests(&[])
        };
        let error = refusal(&strange);
        assert!(error.contains("expected 4 KiB and 2 MiB"), "{error}");
    }

    #[test]
    fn newer_digests_replace_older_ones_and_chunks_that_became_zero_go() {
        let parent = digests(&[(0, 1), (2, 2), (5, 3), (7, 4)]);
        let newer = digests(&[(2, 9), (6, 8)]);

        let all = parent.updated(newer, |index| (2..7).contains(&index));

        assert_eq!(all, digests(&[(0, 1), (2, 9), (6, 8), (7, 4)]));
    }

    #[test]
    fn file_form_is_read_back() {
        let published = digests(&[(0, u64::MAX), (3, 0)]);
        let path = std::path::Path::new("digests");

        let file = StateFile::parse(published.encode().unwrap(), path).unwrap();

        assert_eq!(ChunkDigests::decode(&file).unwrap(), published);
    }
}
