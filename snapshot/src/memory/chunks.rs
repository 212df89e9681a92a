//! The digest of a chunk, its zero pages, and going through many chunks at once.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::PAGE_SIZE;
use super::extents::Chunk;
use super::layer_map::Layer;
use super::layers::MemoryLayers;
use crate::checksum::Checksum;
use crate::error::FileError;

const PAGE_BYTES: usize = 4096;
const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Takes in the pages of one chunk, ascending.
///
/// The digest is over the numbers and the hashes of the pages that are not zero. So it does not
/// depend on which zero pages are holes: a store that was copied without its holes stays valid.
#[derive(Debug, Default)]
pub(super) struct ChunkScan {
    pages: Vec<u8>,
    /// Zero pages of the memory's own layer.
    zero: Vec<Range<u64>>,
}

impl ChunkScan {
    /// Reads the data of a chunk. The files are not mapped: somebody who cuts one meanwhile makes an
    /// error, not a SIGBUS; and on tmpfs a hole would be filled by looking at it.
    pub(super) fn read(memory: &MemoryLayers, chunk: &Chunk) -> Result<Self, FileError> {
        let mut scan = Self::default();
        let mut buffer = Vec::new();
        for extent in &chunk.data {
            let range = &extent.range;
            // A chunk has 2 MiB.
            buffer.resize(
                usize::try_from(range.end - range.start).unwrap_or(usize::MAX),
                0,
            );
            let layer = memory.file(extent.layer);
            layer
                .file
                .read_exact_at(&mut buffer, range.start)
                .map_err(FileError::on("read", &layer.path))?;
            scan.add(range.start, &buffer, extent.layer);
        }
        Ok(scan)
    }

    /// `bytes` are whole pages of the memory at `offset`.
    fn add(&mut self, offset: u64, bytes: &[u8], layer: Layer) {
        for (page, at) in bytes.chunks(PAGE_BYTES).zip((offset..).step_by(PAGE_BYTES)) {
            if page != ZERO_PAGE {
                self.pages.extend((at / PAGE_SIZE).to_le_bytes());
                self.pages.extend(Checksum::of(page).raw().to_le_bytes());
            } else if layer == Layer::OWN {
                self.add_zero(at);
            }
        }
    }

    /// The chunk's digest; none when all its pages are zero.
    pub(super) fn digest(&self) -> Option<Checksum> {
        (!self.pages.is_empty()).then(|| Checksum::of(&self.pages))
    }

    /// The zero pages that the memory's own file has data for, as runs of bytes.
    pub(super) fn zero_runs(&self) -> &[Range<u64>] {
        &self.zero
    }

    fn add_zero(&mut self, at: u64) {
        match self.zero.last_mut() {
            Some(run) if run.end == at => run.end += PAGE_SIZE,
            _ => self.zero.push(at..at + PAGE_SIZE),
        }
    }
}

/// Runs `work` on every chunk, on as many threads as there are CPUs; the results are in the
/// order of the chunks. The first error ends it.
pub(super) fn for_each<R, E>(
    chunks: &[Chunk],
    work: impl Fn(&Chunk) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E>
where
    R: Send,
    E: Send,
{
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some((at, chunk)) = take_next(&next, chunks) {
            match work(chunk) {
                Ok(result) => done.push((at, result)),
                Err(error) => {
                    next.store(chunks.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let helpers = cpus.min(chunks.len()).saturating_sub(1);
    let mut results = thread::scope(|scope| {
        // Where no thread can be had, those that run do all of the work.
        let handles: Vec<_> = (0..helpers)
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, worker).ok())
            .collect();
        let mut results = worker();
        for handle in handles {
            let theirs = handle
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            results = results.and_then(|mut all| {
                all.extend(theirs?);
                Ok(all)
            });
        }
        results
    })?;
    results.sort_unstable_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

fn take_next<'a>(next: &AtomicUsize, chunks: &'a [Chunk]) -> Option<(usize, &'a Chunk)> {
    let at = next.fetch_add(1, Ordering::Relaxed);
    Some((at, chunks.get(at)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(parts: &[(u64, &[u8])]) -> Option<Checksum> {
        let mut scan = ChunkScan::default();
        for (offset, bytes) in parts {
            scan.add(*offset, bytes, Layer::OWN);
        }
        scan.digest()
    }

    #[test]
    fn zero_pages_do_not_change_the_digest() {
        let page = [7; PAGE_BYTES];
        let dense = [ZERO_PAGE, page, ZERO_PAGE].concat();

        assert_eq!(digest_of(&[(0, &dense)]), digest_of(&[(PAGE_SIZE, &page)]));
    }

    #[test]
    fn place_of_a_page_changes_the_digest() {
        let page = [7; PAGE_BYTES];

        assert_ne!(digest_of(&[(0, &page)]), digest_of(&[(PAGE_SIZE, &page)]));
    }

    #[test]
    fn chunk_of_zero_pages_has_no_digest() {
        assert_eq!(digest_of(&[(0, &ZERO_PAGE)]), None);
    }

    #[test]
    fn neighbouring_zero_pages_are_one_run() {
        let mut scan = ChunkScan::default();
        let page = [1; PAGE_BYTES];
        let bytes = [ZERO_PAGE, ZERO_PAGE, page, ZERO_PAGE].concat();
        scan.add(0, &bytes, Layer::OWN);

        let runs = [0..2 * PAGE_SIZE, 3 * PAGE_SIZE..4 * PAGE_SIZE];
        assert_eq!(scan.zero_runs(), runs);
    }

    #[test]
    fn last_byte_alone_makes_a_page_data() {
        let mut page = ZERO_PAGE;
        page[PAGE_BYTES - 1] = 1;

        assert!(digest_of(&[(0, &page)]).is_some());
    }

    fn numbered(count: u64) -> Vec<Chunk> {
        (0..count)
            .map(|index| Chunk {
                index,
                data: Vec::new(),
            })
            .collect()
    }

    #[test]
    fn results_are_in_the_order_of_the_chunks() {
        let results = for_each(&numbered(1000), |chunk| Ok::<_, ()>(chunk.index)).unwrap();

        assert_eq!(results, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn error_of_one_chunk_is_the_result() {
        let result = for_each(&numbered(1000), |chunk| {
            if chunk.index == 500 {
                Err("bad")
            } else {
                Ok(())
            }
        });

        assert_eq!(result, Err("bad"));
    }
}
