//! Compares every byte of a memory with its digests.

use super::chunks::{self, ChunkScan};
use super::digests::ChunkDigests;
use super::extents::{all_of, data_chunks};
use super::layers::MemoryLayers;
use super::{CHUNK_SIZE, MemoryError};

/// Offsets in bytes of the chunks that are not what `published` says, ascending.
pub(crate) fn damaged_chunks(
    memory: &MemoryLayers,
    published: &ChunkDigests,
) -> Result<Vec<u64>, MemoryError> {
    let data = data_chunks(memory, &all_of(memory))?;
    let found = chunks::for_each(&data, |chunk| {
        ChunkScan::read(memory, chunk).map(|scan| scan.digest())
    })?;
    let found = data
        .iter()
        .zip(found)
        .filter_map(|(chunk, digest)| Some((chunk.index, digest?)));
    let differences = published.differences(&ChunkDigests::new(found));
    Ok(differences
        .into_iter()
        .map(|index| index.saturating_mul(CHUNK_SIZE))
        .collect())
}
