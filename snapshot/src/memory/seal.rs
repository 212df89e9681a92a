//! Makes a memory ready to be published: zero pages of its own file become holes, chunks get digests.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rangemap::RangeSet;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::chunks::{self, ChunkScan};
use super::digests::ChunkDigests;
use super::extents::{Chunk, all_of, data_chunks};
use super::layer_map::Layer;
use super::layers::{LayerFile, MemoryLayers};
use super::{CHUNK_SIZE, MemoryError};
use crate::checksum::Checksum;
use crate::error::FileError;

/// The digests of a memory as it was before parts of it were changed.
#[derive(Debug)]
pub(crate) struct Known {
    /// All of them.
    pub digests: ChunkDigests,
    /// The parts that were changed since.
    pub changed: RangeSet<u64>,
}

/// Punches all-zero pages out of the memory's own file and takes the digests, in one pass over all chunks
/// or, where digests are `known`, over those that were changed.
///
/// The guest must be stopped: a page it writes between the look and the punch would be lost.
pub(crate) fn seal(
    memory: &MemoryLayers,
    known: Option<&Known>,
) -> Result<ChunkDigests, MemoryError> {
    let own = memory.file(Layer::OWN);
    let (wanted, known) = match known {
        None => (all_of(memory), None),
        Some(known) => (chunks_of(&known.changed, memory.length()), Some(known)),
    };
    let data = data_chunks(memory, &wanted)?;
    let sealer = Sealer {
        memory,
        own,
        can_punch: AtomicBool::new(true),
    };
    let found = chunks::for_each(&data, |chunk| sealer.seal(chunk))?;
    let found = data
        .iter()
        .zip(found)
        .filter_map(|(chunk, digest)| Some((chunk.index, digest?)));
    let found = ChunkDigests::new(found);
    let is_found = |index: u64| wanted.contains(&index.saturating_mul(CHUNK_SIZE));
    Ok(match known {
        None => found,
        Some(known) => known.digests.updated(found, is_found),
    })
}

/// The whole chunks in which these ranges are.
fn chunks_of(ranges: &RangeSet<u64>, length: u64) -> RangeSet<u64> {
    let chunks = |range: &Range<u64>| {
        let start = range.start - range.start % CHUNK_SIZE;
        start..range.end.next_multiple_of(CHUNK_SIZE).min(length)
    };
    ranges.iter().map(chunks).collect()
}

struct Sealer<'a> {
    memory: &'a MemoryLayers,
    own: &'a LayerFile,
    can_punch: AtomicBool,
}

impl Sealer<'_> {
    fn seal(&self, chunk: &Chunk) -> Result<Option<Checksum>, FileError> {
        let scan = ChunkScan::read(self.memory, chunk)?;
        for run in scan.zero_runs() {
            self.punch(run)?;
        }
        Ok(scan.digest())
    }

    fn punch(&self, run: &Range<u64>) -> Result<(), FileError> {
        // Where there are no holes the file is right without, only larger.
        if self.can_punch.load(Ordering::Relaxed) && !punch(&self.own.file, &self.own.path, run)? {
            self.can_punch.store(false, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Makes a range a hole, which reads as zero; false where the file system has no holes to punch.
pub(super) fn punch(file: &File, path: &Path, range: &Range<u64>) -> Result<bool, FileError> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, range.start, range.end - range.start) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(FileError::on("punch zero pages out of", path)(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{CHUNK_SIZE, PAGE_SIZE, damaged_chunks};
    use std::os::unix::fs::{FileExt, MetadataExt};

    const LENGTH: u64 = 16 * CHUNK_SIZE;

    fn file_with(pages: &[(u64, u8)]) -> MemoryLayers {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH).unwrap();
        for &(page, byte) in pages {
            file.write_all_at(&[byte; 4096], page * PAGE_SIZE).unwrap();
        }
        MemoryLayers::plain(file, Path::new("memory")).unwrap()
    }

    fn allocated(memory: &MemoryLayers) -> u64 {
        memory.deepest().metadata().unwrap().blocks() * 512
    }

    fn sealed(memory: &MemoryLayers) -> ChunkDigests {
        seal(memory, None).unwrap()
    }

    #[test]
    fn zero_pages_are_punched_and_data_is_kept() {
        let zeros: Vec<_> = (0..1024).map(|page| (page, 0)).collect();
        let memory = file_with(&zeros);
        let file = memory.deepest();
        file.write_all_at(&[9; 4096], 700 * PAGE_SIZE).unwrap();

        let before = allocated(&memory);

        sealed(&memory);

        assert!(before >= 1024 * PAGE_SIZE);
        assert!(allocated(&memory) < 64 * 1024);
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 700 * PAGE_SIZE).unwrap();
        assert_eq!(page, [9; 4096]);
        assert_eq!(file.metadata().unwrap().len(), LENGTH);
    }

    #[test]
    fn empty_memory_has_no_digests() {
        assert_eq!(sealed(&file_with(&[])).count(), 0);
    }

    #[test]
    fn second_seal_finds_the_same() {
        let memory = file_with(&[(0, 1), (1, 0), (511, 2), (512, 3), (4095, 4)]);

        let first = sealed(&memory);
        let allocated_then = allocated(&memory);
        let second = sealed(&memory);

        assert_eq!(first, second);
        assert_eq!(first.count(), 3);
        assert_eq!(allocated(&memory), allocated_then);
    }

    #[test]
    fn sealed_file_verifies_also_when_its_holes_are_filled() {
        let memory = file_with(&[(3, 1), (900, 2)]);
        let digests = sealed(&memory);
        let file = memory.deepest();
        file.write_all_at(&[0; 65536], 5 * CHUNK_SIZE).unwrap();

        let damaged = damaged_chunks(&memory, &digests).unwrap();

        assert_eq!(damaged, [0_u64; 0]);
    }

    #[test]
    fn flipped_bit_is_found_in_its_chunk() {
        let memory = file_with(&[(3, 1), (900, 2)]);
        let digests = sealed(&memory);
        let file = memory.deepest();
        file.write_all_at(&[0b11], 900 * PAGE_SIZE + 77).unwrap();
        file.write_all_at(&[1], 7 * CHUNK_SIZE + 5).unwrap();

        let damaged = damaged_chunks(&memory, &digests).unwrap();

        assert_eq!(damaged, [CHUNK_SIZE, 7 * CHUNK_SIZE]);
    }

    #[test]
    fn only_changed_chunks_are_looked_at_where_digests_are_known() {
        let memory = file_with(&[(3, 1), (900, 2), (2000, 3)]);
        let before = sealed(&memory);
        let file = memory.deepest();
        file.write_all_at(&[7; 4096], 900 * PAGE_SIZE).unwrap();
        file.write_all_at(&[0; 4096], 2000 * PAGE_SIZE).unwrap();
        // Nobody has said that this one changed.
        file.write_all_at(&[7; 4096], 4 * PAGE_SIZE).unwrap();
        let page = |page: u64| page * PAGE_SIZE..(page + 1) * PAGE_SIZE;

        let known = Known {
            digests: before,
            changed: [page(900), page(2000)].into_iter().collect(),
        };
        let digests = seal(&memory, Some(&known)).unwrap();

        assert_eq!(digests.count(), 2);
        assert_eq!(damaged_chunks(&memory, &digests).unwrap(), [0]);
    }
}
