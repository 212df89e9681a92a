//! Which layer of a template's memory every page comes from, and the file that says so.

use std::ops::Range;

use rangemap::{RangeMap, RangeSet};
use serde::{Deserialize, Serialize};

use super::{MemoryError, PAGE_SIZE};
use crate::state::{StateFile, StateWriter, WriteError};

/// Name of the file with the map in a template's directory.
pub const FILE_NAME: &str = "layers";

/// The most layers that one memory is made of, the template's own included.
pub const MAX_LAYERS: usize = 8;

/// The most runs of pages that do not come from the deepest layer. Each costs a clone a mapping, and a
/// process has 65530 of them.
pub const MAX_RUNS: usize = 4096;

const SECTION: &str = "memory-layers";
const VERSION: u16 = 1;

/// A layer of one template's memory: 0 is its own, the others follow with the nearest first.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Layer(u32);

impl Layer {
    /// What the template's own VM has written.
    pub const OWN: Self = Self(0);

    /// All layers of a memory that has `count` of them.
    pub fn all(count: usize) -> impl Iterator<Item = Self> {
        (0..).take(count).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }

    /// Name of its file in the template's directory.
    #[must_use]
    pub fn file_name(self) -> String {
        match self.0 {
            0 => super::FILE_NAME.to_owned(),
            number => format!("{}-{number}", super::FILE_NAME),
        }
    }

    fn below(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Where every page of a memory is: runs of bytes, without gaps, each in one layer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LayerMap {
    length: u64,
    layers: usize,
    runs: RangeMap<u64, Layer>,
}

/// The form in the file. Runs follow each other, so that none can overlap and none be missing.
#[derive(Deserialize, Serialize)]
struct Encoded {
    page_size: u64,
    layers: u32,
    runs: Vec<EncodedRun>,
}

#[derive(Deserialize, Serialize)]
struct EncodedRun {
    layer: Layer,
    pages: u64,
}

impl LayerMap {
    /// A memory of `length` bytes with one layer.
    #[must_use]
    pub fn plain(length: u64) -> Self {
        Self {
            length,
            layers: 1,
            runs: whole(length).map(|range| (range, Layer::OWN)).collect(),
        }
    }

    /// The map of a template whose VM was a clone of this one's and has `own` pages itself. What it has
    /// behind the end of this memory is its own.
    #[must_use]
    pub fn child(&self, length: u64, own: &RangeSet<u64>) -> Self {
        let mut runs = RangeMap::new();
        for (run, layer) in self.runs_in(&(0..length)) {
            runs.insert(run, layer.below());
        }
        for range in own.iter().cloned().chain(whole_after(self.length, length)) {
            runs.insert(range, Layer::OWN);
        }
        Self {
            length,
            layers: self.layers + 1,
            runs,
        }
    }

    /// Bytes of the memory.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many layers it is made of.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// The layer that is below all others.
    #[must_use]
    pub fn deepest(&self) -> Layer {
        Layer::all(self.layers).last().unwrap_or(Layer::OWN)
    }

    /// All runs, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, Layer)> {
        self.runs.iter().map(|(run, layer)| (run.clone(), *layer))
    }

    /// The parts of runs that are in `range`, ascending.
    pub fn runs_in(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, Layer)> {
        let inside = range.clone();
        let runs = (!range.is_empty()).then(|| self.runs.overlapping(range.clone()));
        runs.into_iter().flatten().map(move |(run, layer)| {
            let part = run.start.max(inside.start)..run.end.min(inside.end);
            (part, *layer)
        })
    }

    /// How many runs do not come from the deepest layer.
    #[must_use]
    pub fn overlays(&self) -> usize {
        let deepest = self.deepest();
        self.runs().filter(|(_, layer)| *layer != deepest).count()
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, WriteError> {
        let runs = self.runs().map(|(run, layer)| EncodedRun {
            layer,
            pages: (run.end - run.start) / PAGE_SIZE,
        });
        let encoded = Encoded {
            page_size: PAGE_SIZE,
            // At most MAX_LAYERS.
            layers: u32::try_from(self.layers).unwrap_or(u32::MAX),
            runs: runs.collect(),
        };
        let mut writer = StateWriter::new();
        writer.section(SECTION, VERSION, &encoded)?;
        Ok(writer.finish())
    }

    /// The map of a memory whose layers have files of these lengths, the own one first.
    ///
    /// # Errors
    /// The section is missing, too new or damaged, or its runs do not lead to every page once.
    pub fn decode(file: &StateFile, lengths: &[u64]) -> Result<Self, MemoryError> {
        let encoded: Encoded = file.section(SECTION, VERSION..=VERSION)?;
        encoded
            .into_map(lengths)
            .map_err(|reason| MemoryError::Layers {
                path: file.origin().to_path_buf(),
                reason,
            })
    }

    /// As [`Self::decode`], from the bytes of the file.
    #[cfg(test)]
    fn parse(bytes: Vec<u8>, lengths: &[u64]) -> Result<Self, MemoryError> {
        Self::decode(
            &StateFile::parse(bytes, std::path::Path::new("layers"))?,
            lengths,
        )
    }
}

impl Encoded {
    /// Makes sure that the runs lead to every page once, and behind the end of no file.
    fn into_map(self, lengths: &[u64]) -> Result<LayerMap, String> {
        let layers = self.layers as usize;
        let length = lengths.first().copied().unwrap_or_default();
        if self.page_size != PAGE_SIZE {
            let found = self.page_size;
            return Err(format!(
                "its pages have {found} bytes, expected {PAGE_SIZE}"
            ));
        }
        if layers != lengths.len() || !(1..=MAX_LAYERS).contains(&layers) {
            let named = lengths.len();
            return Err(format!(
                "it has {layers} layers, the manifest names {named}"
            ));
        }
        // Between two runs of other layers is at most one of the deepest.
        let found = self.runs.len();
        if found > 2 * MAX_RUNS + 1 {
            return Err(too_many(found));
        }
        let mut runs = RangeMap::new();
        let mut position = 0;
        for run in self.runs {
            let end = run.end(position).filter(|end| *end > position);
            let Some(end) = end else {
                let pages = run.pages;
                return Err(format!("the run at {position:#x} has {pages} pages"));
            };
            let layer = run.layer;
            if lengths.get(layer.index()).is_none_or(|most| end > *most) {
                let number = layer.0;
                return Err(format!(
                    "the run at {position:#x} is not in its layer, number {number}"
                ));
            }
            runs.insert(position..end, layer);
            position = end;
        }
        if position != length {
            return Err(format!("its runs have {position} bytes, expected {length}"));
        }
        let map = LayerMap {
            length,
            layers,
            runs,
        };
        let overlays = map.overlays();
        if overlays > MAX_RUNS {
            return Err(too_many(overlays));
        }
        Ok(map)
    }
}

impl EncodedRun {
    /// Where a run that starts at `start` ends.
    fn end(&self, start: u64) -> Option<u64> {
        start.checked_add(self.pages.checked_mul(PAGE_SIZE)?)
    }
}

fn too_many(runs: usize) -> String {
    format!("it has {runs} runs, at most {MAX_RUNS} are mapped")
}

fn whole(length: u64) -> impl Iterator<Item = Range<u64>> {
    whole_after(0, length)
}

fn whole_after(start: u64, end: u64) -> impl Iterator<Item = Range<u64>> {
    (start < end).then_some(start..end).into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE;

    fn pages(ranges: &[Range<u64>]) -> RangeSet<u64> {
        let bytes = |range: &Range<u64>| range.start * PAGE..range.end * PAGE;
        ranges.iter().map(bytes).collect()
    }

    fn runs(map: &LayerMap) -> Vec<(u64, u64, usize)> {
        let pages =
            |(run, layer): (Range<u64>, Layer)| (run.start / PAGE, run.end / PAGE, layer.index());
        map.runs().map(pages).collect()
    }

    fn three_generations() -> LayerMap {
        let child = LayerMap::plain(100 * PAGE).child(100 * PAGE, &pages(&[10..20, 50..60]));
        child.child(120 * PAGE, &pages(&[15..17, 60..61]))
    }

    #[test]
    fn own_pages_hide_those_below_and_what_is_added_is_own() {
        let expected = [
            (0, 10, 2),
            (10, 15, 1),
            (15, 17, 0),
            (17, 20, 1),
            (20, 50, 2),
            (50, 60, 1),
            (60, 61, 0),
            (61, 100, 2),
            (100, 120, 0),
        ];
        assert_eq!(runs(&three_generations()), expected);
        assert_eq!(three_generations().overlays(), 6);
    }

    #[test]
    fn a_plain_memory_has_one_run_and_no_overlay() {
        let map = LayerMap::plain(7 * PAGE);
        assert_eq!(runs(&map), [(0, 7, 0)]);
        assert_eq!((map.overlays(), map.layers()), (0, 1));
    }

    #[test]
    fn parts_of_runs_are_cut_to_the_range() {
        let map = three_generations();
        let found: Vec<_> = map.runs_in(&(12 * PAGE..16 * PAGE)).collect();
        let expected = [
            (12 * PAGE..15 * PAGE, Layer(1)),
            (15 * PAGE..16 * PAGE, Layer(0)),
        ];
        assert_eq!(found, expected);
        assert_eq!(map.runs_in(&(PAGE..PAGE)).count(), 0);
    }

    #[test]
    fn file_form_is_read_back() {
        let map = three_generations();
        let lengths = [120 * PAGE, 100 * PAGE, 100 * PAGE];
        assert_eq!(
            LayerMap::parse(map.encode().unwrap(), &lengths).unwrap(),
            map
        );
    }

    #[test]
    fn a_map_that_leads_behind_the_end_of_a_file_is_refused() {
        let bytes = || three_generations().encode().unwrap();
        for (lengths, what) in [
            (
                vec![120 * PAGE, 100 * PAGE, 99 * PAGE],
                "not in its layer, number 2",
            ),
            (
                vec![119 * PAGE, 100 * PAGE, 100 * PAGE],
                "not in its layer, number 0",
            ),
            (vec![121 * PAGE, 100 * PAGE, 100 * PAGE], "bytes, expected"),
            (
                vec![120 * PAGE, 100 * PAGE],
                "has 3 layers, the manifest names 2",
            ),
        ] {
            let error = LayerMap::parse(bytes(), &lengths).unwrap_err().to_string();
            assert!(
                error.starts_with("layers ") && error.contains(what),
                "{error}"
            );
        }
    }

    #[test]
    fn impossible_runs_are_refused() {
        let encoded = |page_size, runs: &[(u32, u64)]| {
            let run = |(layer, pages): &(u32, u64)| EncodedRun {
                layer: Layer(*layer),
                pages: *pages,
            };
            let value = Encoded {
                page_size,
                layers: 2,
                runs: runs.iter().map(run).collect(),
            };
            let mut writer = StateWriter::new();
            writer.section(SECTION, VERSION, &value).unwrap();
            writer.finish()
        };
        let alternating: Vec<_> = (0..2 * MAX_RUNS as u64 + 2)
            .map(|n| (u32::from(n % 2 == 0), 1))
            .collect();
        let many = alternating.len() as u64 * PAGE;
        for (bytes, length, what) in [
            (encoded(8192, &[(0, 4)]), 4 * PAGE, "pages have 8192 bytes"),
            (
                encoded(PAGE, &[(0, 2), (1, 0), (0, 2)]),
                4 * PAGE,
                "has 0 pages",
            ),
            (encoded(PAGE, &[(0, 2), (0, u64::MAX)]), 4 * PAGE, "pages"),
            (encoded(PAGE, &[(2, 4)]), 4 * PAGE, "number 2"),
            (encoded(PAGE, &alternating), many, "at most 4096"),
        ] {
            let error = LayerMap::parse(bytes, &[length, length])
                .unwrap_err()
                .to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
