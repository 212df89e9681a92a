//! Target `template_files`: the files of a template but for its memory, damaged with and without a right checksum.

use crate::edits::{Edit, Sections};
use crate::input::actions;
use crate::machine::must;
use serde::Serialize;
use snapshot::memory::{ChunkDigests, LayerMap};
use snapshot::{Checksum, Manifest, StateFile, StateWriter};
use std::path::Path;

const CHECKSUM_BYTES: usize = 8;
/// Bytes of a state file's header up to its length.
const LENGTH_FIELD: std::ops::Range<usize> = 16..24;

/// Reads the bytes behind the first as the file that the first one names.
pub fn run(bytes: &[u8]) {
    let Some((kind, file)) = bytes.split_first() else {
        return;
    };
    match kind % 6 {
        0 => state(file.to_vec()),
        1 => state(with_checksum(file)),
        2 => manifest(file),
        3 => manifest(envelope(file).as_bytes()),
        4 => digests(file),
        _ => layers(file),
    }
}

fn state(bytes: Vec<u8>) {
    let Ok(file) = StateFile::parse(bytes, Path::new("state")) else {
        return;
    };
    for name in file.names().map(str::to_owned).collect::<Vec<_>>() {
        let version = must(file.version(&name));
        type Any = (u64, Vec<(u16, Option<String>)>, Vec<u8>);
        drop(file.section::<Any>(&name, version..=version));
        drop(file.section::<Any>(&name, 7..=9));
    }
    drop(ChunkDigests::decode(&file));
}

fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes, Path::new("manifest.json")) {
        drop(manifest.cpuid::<Vec<(u32, u32)>>());
    }
}

/// Digests as they are published, with changes.
fn digests(edits: &[u8]) {
    #[derive(Serialize)]
    struct Saved {
        page_size: u64,
        chunk_size: u64,
        chunks: Vec<(u64, u64)>,
    }
    let saved = Saved {
        page_size: 4096,
        chunk_size: 2 << 20,
        chunks: vec![(0, 1), (3, u64::MAX), (1000, 7)],
    };
    let decoded = ChunkDigests::decode(&edited("memory-chunks", &saved, edits));
    assert!(decoded.is_ok() || !edits.is_empty(), "{decoded:?}");
}

/// The map of a memory with two layers, with changes.
fn layers(edits: &[u8]) {
    const PAGE: u64 = 4096;
    const LENGTHS: [u64; 2] = [100 * PAGE, 80 * PAGE];
    let runs: Vec<(u32, u64)> = vec![(1, 10), (0, 1), (1, 69), (0, 20)];
    let file = edited("memory-layers", &(PAGE, 2_u32, runs), edits);
    let decoded = LayerMap::decode(&file, &LENGTHS);
    assert!(decoded.is_ok() || !edits.is_empty(), "{decoded:?}");
    let Ok(map) = decoded else { return };
    let mut end = 0;
    for (run, layer) in map.runs() {
        assert!(run.start == end && run.end > end, "{run:?} follows {end}");
        assert!(
            run.end <= LENGTHS[layer.index()],
            "{run:?} is not in {layer:?}"
        );
        end = run.end;
    }
    assert_eq!(end, LENGTHS[0]);
}

/// A file with one section, whose content was changed and whose checksum is right.
fn edited(name: &str, value: &impl Serialize, edits: &[u8]) -> StateFile {
    let mut writer = StateWriter::new();
    must(writer.section(name, 1, value));
    let mut sections = Sections::of(&writer.finish());
    actions::<Edit<'_>>(edits).for_each(|edit| sections.edit(&edit));
    must(StateFile::parse(sections.file(), Path::new(name)))
}

/// The bytes, with length and checksum as they should be.
fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut file = [b"MVMSTATE\x01\0\x01\0".as_slice(), bytes].concat();
    let length = file.len() + CHECKSUM_BYTES;
    if let Some(field) = file.get_mut(LENGTH_FIELD) {
        field.copy_from_slice(&(length as u64).to_le_bytes());
    }
    file.extend(checksum(&file).to_le_bytes());
    file
}

fn checksum(bytes: &[u8]) -> u64 {
    let text = Checksum::of(bytes).to_string();
    let digits = text.strip_prefix("xxh3:").unwrap_or_default();
    must(u64::from_str_radix(digits, 16))
}

/// A manifest's envelope around what should be JSON.
fn envelope(template: &[u8]) -> String {
    let template = String::from_utf8_lossy(template);
    let template = template.trim();
    let checksum = Checksum::of(template.as_bytes());
    format!("{{\"format\": 1, \"checksum\": \"{checksum}\", \"template\": {template}}}")
}
