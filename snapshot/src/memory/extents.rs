//! Where a memory has data, cut at chunk boundaries.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use rangemap::RangeSet;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::layer_map::Layer;
use super::layers::MemoryLayers;
use super::{CHUNK_SIZE, PAGE_SIZE};
use crate::error::FileError;

/// A chunk of which at least one page has data.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Chunk {
    /// Number of the chunk in the memory, from 0.
    pub index: u64,
    /// Parts with data, ascending, all within the chunk.
    pub data: Vec<Extent>,
}

/// Whole pages with data in one layer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Extent {
    /// Bytes of the memory.
    pub range: Range<u64>,
    /// Whose file has them.
    pub layer: Layer,
}

/// The chunks of `wanted` parts of a memory that have data, ascending. Holes are never looked at.
pub(super) fn data_chunks(
    memory: &MemoryLayers,
    wanted: &RangeSet<u64>,
) -> Result<Vec<Chunk>, FileError> {
    let _still = memory.look_for_holes()?;
    let mut chunks = Vec::new();
    for range in wanted.iter() {
        for (run, layer) in memory.map().runs_in(range) {
            let layer_file = memory.file(layer);
            for range in data_in(&layer_file.file, &layer_file.path, run)? {
                push(&mut chunks, Extent { range, layer });
            }
        }
    }
    Ok(chunks)
}

/// All of a memory.
pub(super) fn all_of(memory: &MemoryLayers) -> RangeSet<u64> {
    (memory.length() > 0)
        .then_some(0..memory.length())
        .into_iter()
        .collect()
}

/// The parts of a range, which is of whole pages, where a file has data.
pub(super) fn data_in(
    file: &File,
    path: &Path,
    within: Range<u64>,
) -> Result<Vec<Range<u64>>, FileError> {
    let mut found = Vec::new();
    let mut position = within.start;
    while position < within.end {
        let start = match seek(file, SeekFrom::Data(position)) {
            Ok(start) => start.max(position),
            // No data up to the end.
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(FileError::on("find the data of", path)(errno)),
        };
        if start >= within.end {
            break;
        }
        let end = seek(file, SeekFrom::Hole(start))
            .map_err(FileError::on("find the holes of", path))?
            .max(start + 1);
        // A file system may report blocks smaller than a page.
        let start = start - start % PAGE_SIZE;
        let end = end.next_multiple_of(PAGE_SIZE).min(within.end);
        found.push(start.max(position)..end);
        position = end;
    }
    Ok(found)
}

fn push(chunks: &mut Vec<Chunk>, extent: Extent) {
    let mut start = extent.range.start;
    while start < extent.range.end {
        let index = start / CHUNK_SIZE;
        let end = extent.range.end.min((index + 1) * CHUNK_SIZE);
        let part = Extent {
            range: start..end,
            layer: extent.layer,
        };
        match chunks.last_mut() {
            Some(chunk) if chunk.index == index => chunk.data.push(part),
            _ => chunks.push(Chunk {
                index,
                data: vec![part],
            }),
        }
        start = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn chunks_of(data: Range<u64>, length: u64) -> Vec<Chunk> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        let bytes = vec![1; usize::try_from(data.end - data.start).unwrap()];
        file.write_all_at(&bytes, data.start).unwrap();
        let memory = MemoryLayers::plain(file, Path::new("memory")).unwrap();
        data_chunks(&memory, &all_of(&memory)).unwrap()
    }

    #[test]
    fn file_without_data_has_no_chunks() {
        assert_eq!(chunks_of(0..0, 64 << 20), []);
    }

    #[test]
    fn data_across_a_boundary_is_cut_there() {
        let edge = CHUNK_SIZE;

        let chunks = chunks_of(edge - PAGE_SIZE..edge + PAGE_SIZE, 4 * CHUNK_SIZE);

        let ranges = chunks.iter().map(|c| (c.index, c.data[0].range.clone()));
        let before = edge - PAGE_SIZE..edge;
        let after = edge..edge + PAGE_SIZE;
        assert_eq!(ranges.collect::<Vec<_>>(), [(0, before), (1, after)]);
    }

    #[test]
    fn last_byte_of_the_file_is_found() {
        let length = 6 * CHUNK_SIZE;

        let chunks = chunks_of(length - 1..length, length);

        assert_eq!(chunks.len(), 1);
        assert_eq!(chunks[0].index, 5);
    }
}
