//! What the state file promises, tried on damaged ones.

use std::path::Path;

use super::*;
use crate::checksum::Checksum;

const ORIGIN: &str = "/store/templates/t/state";

fn sample() -> Vec<u8> {
    let mut writer = StateWriter::new();
    writer
        .section("vcpu-0", 2, &(7_u64, vec![1_u8, 2, 3]))
        .unwrap();
    writer.section("serial", 1, "console").unwrap();
    writer.finish()
}

fn parse(bytes: Vec<u8>) -> Result<StateFile, StateError> {
    StateFile::parse(bytes, Path::new(ORIGIN))
}

fn refused(bytes: Vec<u8>) -> StateError {
    let error = parse(bytes).unwrap_err();
    assert!(error.to_string().starts_with(ORIGIN), "{error}");
    error
}

/// Changes bytes and makes the checksum right again: damage that a checksum does not show.
fn forged(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = sample();
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    change(&mut bytes);
    let total = (bytes.len() + CHECKSUM_BYTES) as u64;
    bytes[16..24].copy_from_slice(&total.to_le_bytes());
    let checksum = Checksum::of(&bytes).raw();
    bytes.extend(checksum.to_le_bytes());
    bytes
}

#[test]
fn sections_come_back_as_written() {
    let file = parse(sample()).unwrap();

    assert_eq!(file.names().collect::<Vec<_>>(), ["vcpu-0", "serial"]);
    assert_eq!(file.version("vcpu-0").unwrap(), 2);
    assert_eq!(
        file.section::<(u64, Vec<u8>)>("vcpu-0", 1..=2).unwrap(),
        (7, vec![1, 2, 3])
    );
    assert_eq!(file.section::<&str>("serial", 1..=1).unwrap(), "console");
}

#[test]
fn state_without_sections_is_a_state() {
    let file = parse(StateWriter::new().finish()).unwrap();

    assert_eq!(file.names().count(), 0);
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = sample();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        refused(bytes);
    }
}

#[test]
fn every_cut_is_refused_as_cut_off_or_empty() {
    let good = sample();
    for length in 0..good.len() {
        let error = refused(good[..length].to_vec());
        assert!(
            matches!(error, StateError::Empty { .. } | StateError::CutOff { .. }),
            "{length}: {error}"
        );
    }
}

#[test]
fn cut_names_both_lengths() {
    let good = sample();
    let error = refused(good[..100].to_vec()).to_string();

    assert!(
        error.ends_with(&format!("100 of {} bytes", good.len())),
        "{error}"
    );
}

#[test]
fn byte_after_the_end_is_refused() {
    let mut bytes = sample();
    bytes.push(0);

    assert!(matches!(refused(bytes), StateError::TrailingBytes { .. }));
}

#[test]
fn another_kind_of_file_is_refused_with_its_first_bytes() {
    let error = refused(b"\x7fELF\x02\x01\x01\0\0\0".to_vec());

    assert!(matches!(error, StateError::NotState { .. }));
    assert!(error.to_string().contains(r"\x7fELF\x02"), "{error}");
}

#[test]
fn newer_format_is_refused_before_its_checksum_is_tested() {
    let mut bytes = StateWriter::new().finish_as(FORMAT + 1, Arch::CURRENT.tag());
    let last = bytes.len() - 1;
    bytes[last] ^= 1;

    assert!(matches!(
        refused(bytes),
        StateError::Format { found, .. } if found == FORMAT + 1
    ));
}

#[test]
fn other_architectures_are_refused_by_name() {
    let other = if Arch::CURRENT == Arch::X86_64 {
        Arch::Aarch64
    } else {
        Arch::X86_64
    };
    let known = refused(StateWriter::new().finish_as(FORMAT, other.tag())).to_string();
    let unknown = refused(StateWriter::new().finish_as(FORMAT, 999)).to_string();

    assert!(known.contains(&other.to_string()), "{known}");
    assert!(unknown.contains("architecture tag 999"), "{unknown}");
}

#[test]
fn missing_section_is_named_with_those_that_are_there() {
    let file = parse(sample()).unwrap();
    let error = file.section::<u8>("vsock", 1..=1).unwrap_err().to_string();

    assert!(
        error.ends_with("no section vsock, it has: vcpu-0, serial"),
        "{error}"
    );
}

#[test]
fn newer_section_is_refused_with_both_versions() {
    let file = parse(sample()).unwrap();
    let error = file.section::<u64>("vcpu-0", 1..=1).unwrap_err();

    assert!(
        error
            .to_string()
            .ends_with("section vcpu-0 in version 2, this build reads 1 to 1"),
        "{error}"
    );
}

#[test]
fn section_of_another_shape_is_refused() {
    let file = parse(sample()).unwrap();

    let short = file.section::<[u64; 9]>("serial", 1..=1).unwrap_err();
    let long = file.section::<u8>("serial", 1..=1).unwrap_err();

    assert!(matches!(short, StateError::SectionBody { .. }), "{short}");
    assert!(
        matches!(long, StateError::SectionTrailing { unread: 7, .. }),
        "{long}"
    );
}

#[test]
fn length_of_2_to_60_inside_a_body_allocates_nothing() {
    let mut writer = StateWriter::new();
    writer.section("list", 1, &(1_u64 << 60)).unwrap();
    let file = parse(writer.finish()).unwrap();

    let list = file.section::<Vec<u64>>("list", 1..=1).unwrap_err();
    let bytes = file.section::<&[u8]>("list", 1..=1).unwrap_err();
    let text = file.section::<String>("list", 1..=1).unwrap_err();

    for error in [list, bytes, text] {
        assert!(matches!(error, StateError::SectionBody { .. }), "{error}");
    }
}

#[test]
fn length_of_2_to_60_in_the_header_is_a_cut_file() {
    let mut bytes = sample();
    bytes[16..24].copy_from_slice(&(1_u64 << 60).to_le_bytes());

    assert!(matches!(
        refused(bytes),
        StateError::CutOff { expected, .. } if expected == 1 << 60
    ));
}

#[test]
fn table_with_a_right_checksum_is_still_checked() {
    let entry = HEADER_BYTES;
    let put = |at: usize, with: Vec<u8>| {
        forged(move |bytes| bytes[at..at + with.len()].copy_from_slice(&with))
    };
    let cases = [
        ("count", put(12, u32::MAX.to_le_bytes().to_vec())),
        ("fewer sections", put(12, 1_u32.to_le_bytes().to_vec())),
        ("name", put(entry, b"VCPU".to_vec())),
        ("empty name", put(entry, vec![0; 32])),
        ("name goes on", put(entry + 10, b"x".to_vec())),
        ("same name", put(entry + ENTRY_BYTES, b"vcpu-0".to_vec())),
        ("reserved", put(entry + 34, vec![1])),
        ("offset", put(entry + 40, 0_u64.to_le_bytes().to_vec())),
        (
            "offset end",
            put(entry + 40, u64::MAX.to_le_bytes().to_vec()),
        ),
        (
            "length",
            put(entry + 48, (1_u64 << 60).to_le_bytes().to_vec()),
        ),
        (
            "length wraps",
            put(entry + 48, u64::MAX.to_le_bytes().to_vec()),
        ),
        ("unowned bytes", forged(|bytes| bytes.push(0))),
    ];
    for (what, bytes) in cases {
        let error = refused(bytes);
        assert!(matches!(error, StateError::Table { .. }), "{what}: {error}");
    }
}

#[test]
fn writer_refuses_bad_and_repeated_names() {
    let mut writer = StateWriter::new();
    writer.section("a", 1, &1_u8).unwrap();

    assert!(matches!(
        writer.section("a", 1, &1_u8),
        Err(WriteError::Duplicate(_))
    ));
    for name in ["", "A", "a b", "a_b", &"x".repeat(33)] {
        assert!(
            matches!(writer.section(name, 1, &1_u8), Err(WriteError::Name(_))),
            "{name:?}"
        );
    }
}

#[test]
fn writer_refuses_what_no_reader_would_take() {
    let mut writer = StateWriter::new();
    let body = vec![0_u8; usize::try_from(MAX_FILE_BYTES).unwrap()];

    assert!(matches!(
        writer.section("big", 1, &body),
        Err(WriteError::TooLarge { .. })
    ));
}
