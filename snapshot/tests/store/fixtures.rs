//! Files written by earlier formats, kept as they were: every later program must read them.

use std::fs;
use std::path::{Path, PathBuf};

use snapshot::manifest::Manifest;
use snapshot::{StateFile, TemplateName};

use crate::layers::with_child;
use crate::support::{MEMORY_BYTES, name, spec, state};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

#[test]
fn state_of_format_1_is_read() {
    let file = StateFile::open(&fixture("format-1.state")).unwrap();

    assert_eq!(file.names().collect::<Vec<_>>(), ["vcpu-0", "serial"]);
    assert_eq!(file.section::<&str>("serial", 3..=3).unwrap(), "console");
    let registers: Vec<u64> = file.section("vcpu-0", 1..=1).unwrap();
    assert_eq!(registers[511], 511 * 0x0101_0101);
}

#[test]
fn state_is_still_written_in_format_1() {
    assert_eq!(fs::read(fixture("format-1.state")).unwrap(), state());
}

#[test]
fn manifest_of_format_1_is_read() {
    let path = fixture("format-1.manifest.json");

    let manifest = Manifest::parse(&fs::read(&path).unwrap(), &path).unwrap();

    assert_eq!(manifest.name, "t".parse::<TemplateName>().unwrap());
    assert_eq!(manifest.spec.guest, spec().guest);
    assert_eq!(manifest.spec.host, spec().host);
    assert_eq!(manifest.cpuid::<Vec<u8>>().unwrap(), [1, 2, 3]);
    assert_eq!(
        manifest.files.state.size,
        fs::metadata(fixture("format-1.state")).unwrap().len()
    );
}

/// Its memory is in layers.
#[test]
fn manifest_of_format_2_is_read() {
    let path = fixture("format-2.manifest.json");

    let manifest = Manifest::parse(&fs::read(&path).unwrap(), &path).unwrap();

    let below = manifest.files.below();
    assert_eq!(below.len(), 1);
    assert_eq!(below[0].template, name("t"));
    assert_eq!(below[0].file.size, MEMORY_BYTES);
    let map = StateFile::open(&fixture("format-2.layers")).unwrap();
    let record = &manifest.files.layers.as_ref().unwrap().map;
    assert_eq!(
        (record.size, record.checksum),
        (map.size_bytes(), map.checksum())
    );
}

#[test]
fn map_of_layers_is_still_written_as_in_format_2() {
    let test = with_child();
    let written = fs::read(test.file("u", "layers")).unwrap();
    assert_eq!(fs::read(fixture("format-2.layers")).unwrap(), written);
}

/// Run by hand when a format is new: `cargo test -p snapshot --test store -- --ignored write_`.
#[test]
#[ignore = "writes the fixtures of the present format"]
fn write_fixtures() {
    let test = with_child();
    for (template, file, fixture_name) in [
        ("t", "state", "format-1.state"),
        ("t", "manifest.json", "format-1.manifest.json"),
        ("u", "layers", "format-2.layers"),
        ("u", "manifest.json", "format-2.manifest.json"),
    ] {
        fs::copy(test.file(template, file), fixture(fixture_name)).unwrap();
    }
}
